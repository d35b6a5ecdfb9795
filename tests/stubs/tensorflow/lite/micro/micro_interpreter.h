// A stand-in for TFLite Micro's interpreter: it answers golden inputs with golden outputs, of which FLIPPED bytes are wrong,
// and wants all operators registered and an arena of the stated size. NETWORK: what the names of the network begin with;
// NETWORK_ARENA_BYTES: its macro.
#ifndef STUB_MICRO_INTERPRETER_H_
#define STUB_MICRO_INTERPRETER_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "model_data.h"
#include "model_golden.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

#define TFLITE_SCHEMA_VERSION (3)
#define JOINED(network, name) network##_golden_##name
#define EXPANDED(network, name) JOINED(network, name)
#define GOLDEN(name) EXPANDED(NETWORK, name)

struct TfLiteTensor {
  struct {
    char* raw;
  } data;
  size_t bytes;
};

namespace tflite {

class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& resolver, uint8_t* arena, size_t bytes)
      : ready_(model != nullptr && resolver.registered == OPERATORS && bytes >= NETWORK_ARENA_BYTES) {
    char* raw = reinterpret_cast<char*>(arena);
    input_ = {{raw}, sizeof GOLDEN(input_0)[0]};
    output_ = {{raw + input_.bytes}, sizeof GOLDEN(output_0)[0]};
  }
  TfLiteStatus AllocateTensors() { return ready_ ? kTfLiteOk : kTfLiteError; }
  TfLiteStatus Invoke() {
    for (size_t v = 0; v < sizeof GOLDEN(input_0) / input_.bytes; ++v) {
      if (memcmp(input_.data.raw, GOLDEN(input_0)[v], input_.bytes) != 0) continue;
      memcpy(output_.data.raw, GOLDEN(output_0)[v], output_.bytes);
      for (int i = 0; i < FLIPPED; ++i) output_.data.raw[i] = static_cast<char>(~output_.data.raw[i]);
      return kTfLiteOk;
    }
    return kTfLiteError;
  }
  TfLiteTensor* input(size_t index) { return index == 0 ? &input_ : nullptr; }
  TfLiteTensor* output(size_t index) { return index == 0 ? &output_ : nullptr; }

 private:
  bool ready_;
  TfLiteTensor input_, output_;
};

}  // namespace tflite

#endif
