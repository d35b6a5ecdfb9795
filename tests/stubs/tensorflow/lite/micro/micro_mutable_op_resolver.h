// A stand-in for TFLite Micro's resolver: its methods by name, and room for N operators.
#ifndef STUB_MICRO_MUTABLE_OP_RESOLVER_H_
#define STUB_MICRO_MUTABLE_OP_RESOLVER_H_

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

namespace tflite {

class MicroOpResolver {
 public:
  int registered = 0;
};

template <unsigned int N>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
#define OPERATOR(name) \
  TfLiteStatus name() { return ++registered <= static_cast<int>(N) ? kTfLiteOk : kTfLiteError; }
  OPERATOR(AddAdd)
  OPERATOR(AddConv2D)
  OPERATOR(AddDepthwiseConv2D)
  OPERATOR(AddDequantize)
  OPERATOR(AddFullyConnected)
  OPERATOR(AddMaxPool2D)
  OPERATOR(AddMean)
  OPERATOR(AddQuantize)
  OPERATOR(AddSoftmax)
#undef OPERATOR
};

}  // namespace tflite

#endif
