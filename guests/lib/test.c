/* The runner of cases: the result protocol on COM1, the trap catcher's C half, start-up.
 *
 * Lines: `RUN name`, then `PASS name`, `FAIL name: what` (one or more) or `SKIP name: why`; before an
 * intended triple fault `DYING name`; at the very end `END`, then debug-exit.
 * The command line's `from=N` starts at case N (after a case that ended the machine), `only=N` runs one. */
#include "guest.h"
#include <stdarg.h>

extern const struct test tests_begin[], tests_end[];
extern u32 boot_info;
void exec_enter(struct regs *r);
int trap_entry(struct regs *frame);
void guest_main(void) __attribute__((noreturn));
void debug_exit(void) __attribute__((noreturn, noinline));
extern word exec_sp;

handler handlers[256];
struct regs *exec_target;
struct regs exec_in; /* 32-bit programs enter from here */
static const struct test *current;
static int failures, skipped;
static word abandon_sp[8]; /* __builtin_setjmp's buffer */
static u8 snippet_stack[8192] __attribute__((aligned(16)));

static void put_char(char c)
{
    while (!(inb(0x3fd) & 0x20))
        pause();
    outb(0x3f8, (u8)c);
}

static void put_number(u64 v, unsigned base)
{
    char digits[20];
    int n = 0;
    if (base == 16) {
        do
            digits[n++] = "0123456789abcdef"[v & 15];
        while (v >>= 4);
    } else {
        u32 w = (u32)v; /* decimal numbers are small: no 64-bit division in 32-bit programs */
        do
            digits[n++] = (char)('0' + w % 10);
        while (w /= 10);
    }
    while (n)
        put_char(digits[--n]);
}

static void put_list(const char *f, va_list args)
{
    for (; *f; f++) {
        if (*f != '%') {
            put_char(*f);
            continue;
        }
        int longs = 0;
        for (f++; *f == 'l'; f++)
            longs++;
        if (*f == 's') {
            for (const char *s = va_arg(args, const char *); *s; s++)
                put_char(*s);
        } else if (*f == 'c') {
            put_char((char)va_arg(args, int));
        } else if (*f == 'x') {
            put_number(longs == 2 ? va_arg(args, u64) : longs ? va_arg(args, word) : va_arg(args, u32), 16);
        } else { /* d, u */
            put_number(longs == 2 ? va_arg(args, u64) : longs ? va_arg(args, word) : va_arg(args, u32), 10);
        }
    }
}

void put(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    put_list(format, args);
    va_end(args);
}

void fail(const char *format, ...)
{
    va_list args;
    if (failures++ > 20)
        return;
    put("FAIL %s: ", current->name);
    va_start(args, format);
    put_list(format, args);
    va_end(args);
    put("\n");
}

void give_up(void) { __builtin_longjmp((void **)abandon_sp, 1); }

void skip(const char *why)
{
    put("SKIP %s: %s\n", current->name, why);
    skipped = 1;
    give_up();
}

/* Waits until the last character has left. */
static void drain(void)
{
    while (!(inb(0x3fd) & 0x40))
        pause();
}

void dying(void)
{
    put("DYING %s\n", current->name);
    drain();
}

void debug_exit(void)
{
    for (;;)
        outb(0xf4, 0x10); /* exit status 0x21 */
}

void finish(void)
{
    put("END\n");
    drain();
    debug_exit();
}

struct regs kernel_regs(void)
{
    struct regs r;
    memset(&r, 0, sizeof r);
    r.cs = KCS;
    r.ss = r.ds = r.es = r.fs = r.gs = KDS;
    r.flags = 2;
    r.sp = (word)(snippet_stack + sizeof snippet_stack - 256);
    return r;
}

struct regs user_regs(void)
{
    struct regs r = kernel_regs();
#ifdef __x86_64__
    r.cs = UCS64;
#else
    r.cs = UCS32;
#endif
    r.ss = r.ds = r.es = r.fs = r.gs = UDS;
    return r;
}

void run_at(struct regs *r, const void *code)
{
    r->start = r->ip = (word)code;
    exec_in = *r;
    exec_target = r;
    exec_enter(r);
}

#ifdef __x86_64__
extern u8 ap_stacks[];
static int on_ap(struct regs *frame) { return (word)((u8 *)frame - ap_stacks) < MAX_AP * 2 * AP_STACK; }
#else
static int on_ap(struct regs *frame) { (void)frame; return 0; }
#endif

/* Returns whether to leave to run_at instead of returning to the interrupted code. */
int trap_entry(struct regs *frame)
{
    u8 vector = (u8)frame->vector;
    if (handlers[vector]) {
        handlers[vector](frame);
        return 0;
    }
    if (exec_target && !on_ap(frame)) {
        struct regs *r = exec_target;
        word start = r->start;
        exec_target = NULL;
#ifdef __x86_64__
        *r = *frame;
#else
        if (frame->flags & F_VM) {
            memcpy(r, frame, offsetof(struct regs, cr2));
        } else {
            memcpy(r, frame, offsetof(struct regs, sp));
            if (frame->cs & 3) {
                r->sp = frame->sp;
                r->ss = frame->ss & 0xffff;
            } else {
                r->sp = (word)&frame->sp;
                asm volatile("mov %%ss, %0" : "=r"(r->ss));
            }
            r->cs &= 0xffff;
            r->ds &= 0xffff;
            r->es &= 0xffff;
            r->fs &= 0xffff;
            r->gs &= 0xffff;
        }
#endif
        r->start = start;
        r->cr2 = read_cr2();
        r->dr6 = read_dr6();
        return 1;
    }
    fail("unexpected vector %d error 0x%lx at %lx:%lx flags 0x%lx cr2 0x%lx%s", vector, frame->error,
         frame->cs, frame->ip, frame->flags, read_cr2(), on_ap(frame) ? " on another CPU" : "");
    if (on_ap(frame))
        for (;;)
            asm volatile("cli; hlt");
    give_up();
}

int trapped_at(const struct regs *r, unsigned vector, word error, long offset, int line)
{
    if (r->vector == vector && r->error == error && (offset < 0 || r->ip - r->start == (word)offset))
        return 1;
    fail("vector %ld error 0x%lx at +%ld, want %d 0x%lx +%ld (cr2 0x%lx ip 0x%lx cs 0x%lx) (line %d)", r->vector,
         r->error, r->ip - r->start, vector, error, offset, r->cr2, r->ip, r->cs, line);
    return 0;
}

int done_at(const struct regs *r, int line)
{
    if (r->vector == V_DONE)
        return 1;
    return trapped_at(r, V_DONE, 0, -1, line);
}

void *memset(void *to, int byte, size_t n)
{
    void *d = to;
    asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *d = to;
    asm volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

u32 cpu_word(int index)
{
    static const struct { u32 leaf; u8 out; } where[] = {
        {1, 2}, {1, 3}, {7, 1}, {7, 2}, {7, 3}, {0x80000001, 2}, {0x80000001, 3}, {0xd, 0}}; /* the last with subleaf 1 */
    u32 r[4];
    cpuid(where[index].leaf & 0x80000000, 0, r);
    if (r[0] < where[index].leaf)
        return 0;
    cpuid(where[index].leaf, index == CD1_EAX, r);
    return r[where[index].out];
}

int is_intel(void)
{
    u32 r[4];
    cpuid(0, 0, r);
    return r[1] == 0x756e6547;
}

unsigned maxphyaddr(void)
{
    u32 r[4];
    cpuid(0x80000008, 0, r);
    return r[0] & 0xff;
}

/* The number after `key` on the command line, or -1. */
static int option(const char *line, const char *key)
{
    size_t n = 0;
    while (key[n])
        n++;
    for (; *line; line++)
        if (!memcmp(line, key, n)) {
            int v = 0;
            for (line += n; *line >= '0' && *line <= '9'; line++)
                v = v * 10 + *line - '0';
            return v;
        }
    return -1;
}

void guest_main(void)
{
    static char line[256];
    const u32 *info = (const u32 *)(word)boot_info;
    if (info[0] & 4) {
        const char *given = (const char *)(word)info[4];
        for (int i = 0; i < 250 && given[i]; i++)
            line[i] = given[i];
    }
    outb(0x3f9, 0); /* no interrupts, 8 data bits */
    outb(0x3fb, 3);
    int from = option(line, "from="), only = option(line, "only=");
    pic_remap();
    int index = 0;
    for (const struct test *t = tests_begin; t != tests_end; t++, index++) {
        if (index < from || (only >= 0 && index != only))
            continue;
        current = t;
        failures = skipped = 0;
        exec_target = NULL;
        put("RUN %s\n", t->name);
        drain();
        if (!__builtin_setjmp((void **)abandon_sp)) {
            baseline();
            t->run();
        }
        cli();
        if (!failures && !skipped)
            put("PASS %s\n", current->name);
    }
    baseline();
    finish();
}
