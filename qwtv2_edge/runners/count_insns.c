/* A plugin for QEMU: counts the instructions that an emulated processor executes.
 *
 * A process under qemu-user asks for the total so far by system call QUESTION, which no kernel has, with the file descriptor of
 * a pipe as its argument. The total is written to that pipe as a uint64 in this machine's byte order. The system call itself
 * then fails as it would without the plugin; the process tells from the empty pipe that there is none.
 *
 * A board under qemu-system has no such system calls. Arguments "mark=ADDRESS,fd=NUMBER" have the total written to that file
 * descriptor of the emulator whenever the instruction at ADDRESS, the first of a function, is executed.
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
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*on_block)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_execution)(unsigned vcpu, void *data);
typedef void (*on_syscall)(plugin_id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                           uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_block);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *counter, uint64_t add);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, on_execution, enum qemu_plugin_cb_flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

EXPORTED int qemu_plugin_version = 1;

static uint64_t executed;
static uint64_t mark; /* 0 for none */
static int marks;     /* file descriptor */

static int tell(int file)
{
    uint64_t total = executed;
    return write(file, &total, sizeof total) == sizeof total;
}

static void marked(unsigned vcpu, void *data)
{
    if (!tell(marks))
        mark = 0; /* the reader misses some */
}

/* A block's instructions count when it is entered. System calls end blocks and functions begin them, so that a total asked for
   is complete. */
static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
    struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(block, 0);
    if (mark && qemu_plugin_insn_vaddr(first) == mark)
        qemu_plugin_register_vcpu_insn_exec_cb(first, marked, QEMU_PLUGIN_CB_NO_REGS, NULL);
}

static void called(plugin_id id, unsigned vcpu, int64_t number, uint64_t pipe, uint64_t a2, uint64_t a3, uint64_t a4,
                   uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    if (number == QUESTION)
        tell((int)pipe); /* if it fails the process sees an empty pipe */
}

/* The decimal number behind "name=", or 0. */
static uint64_t number_in(const char *argument, const char *name)
{
    while (*name && *argument == *name)
        argument++, name++;
    uint64_t value = 0;
    if (!*name && *argument == '=')
        while (*++argument)
            value = 10 * value + (uint64_t)(*argument - '0');
    return value;
}

EXPORTED int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        mark += number_in(argv[i], "mark");
        marks += (int)number_in(argv[i], "fd");
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
