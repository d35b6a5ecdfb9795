/* A plugin for qemu-user: counts the instructions that an emulated process executes, and answers the process when it asks.
 *
 * The process asks by system call QUESTION, which no kernel has, with the file descriptor of a pipe as its argument. The
 * total so far is written to that pipe as a uint64 in this machine's byte order. The system call itself then fails as it would
 * without the plugin; the process tells from the empty pipe that there is none.
 *
 * One counter serves all threads and is not atomic: totals are exact while one thread works.
 *
 * The declarations below are those of qemu's plugin interface, version 1 (qemu 4.2 to 8.2), whose header is seldom packaged.
 */

#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))

enum { QUESTION = 0x5157 };

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

typedef void (*on_block)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_syscall)(plugin_id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                           uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_block);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *counter, uint64_t add);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

EXPORTED int qemu_plugin_version = 1;

static uint64_t executed;

/* A block's instructions count when it is entered; system calls end blocks, so that a total asked for is complete. */
static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned vcpu, int64_t number, uint64_t pipe, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    if (number == QUESTION) {
        uint64_t total = executed;
        if (write((int)pipe, &total, sizeof total) != sizeof total)
            return; /* the process sees an empty pipe */
    }
}

EXPORTED int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
