/* What every guest program uses: types, registers, the trap catcher, descriptors, output. */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef unsigned long word; /* the natural word: 32 or 64 bits */

/* ---- the test registry ----
 * TEST(name) { ... } registers a case twice: in the image's `tests` table, which the guest runs, and
 * in the section .testnames, from which the harness learns what must be reported. */
struct test {
    const char *name;
    void (*run)(void);
};
#define TEST(id)                                                                              \
    static void test_##id(void);                                                              \
    static const struct test entry_##id __attribute__((used, section("tests"))) = {#id, test_##id}; \
    asm(".pushsection .testnames,\"\",@progbits\n.asciz \"" #id "\"\n.popsection");            \
    static void test_##id(void)
/* A case in which the named engine is known to deviate from the manual, and why. */
#define KNOWN(engine, id, reason) \
    asm(".pushsection .testnames,\"\",@progbits\n.asciz \"!" #engine " " #id " " reason "\"\n.popsection")
/* The program needs this many CPUs. */
#define CPUS(n) asm(".pushsection .testnames,\"\",@progbits\n.asciz \"#cpus " #n "\"\n.popsection")

void put(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
void skip(const char *why);  /* the CPU lacks what the case needs; does not return to the case */
void dying(void);            /* what follows must end in a triple fault */
void finish(void) __attribute__((noreturn));
void give_up(void) __attribute__((noreturn)); /* leave the running case (failed already) */

#define EXPECT_EQ(got, want)                                                                   \
    ({                                                                                         \
        u64 got_ = (u64)(got), want_ = (u64)(want);                                            \
        if (got_ != want_)                                                                     \
            fail(#got ": got 0x%llx want 0x%llx (line %d)", got_, want_, __LINE__);            \
        got_ == want_;                                                                         \
    })
#define EXPECT(cond) ({ if (!(cond)) fail("not so: " #cond " (line %d)", __LINE__); })
#define NEED(cond) ({ if (!(cond)) skip(#cond); })

/* ---- vectors ---- */
enum {
    V_DE, V_DB, V_NMI, V_BP, V_OF, V_BR, V_UD, V_NM, V_DF, V_TS = 10, V_NP, V_SS, V_GP, V_PF,
    V_MF = 16, V_AC, V_MC, V_XM, V_DONE = 0x81
};

/* ---- flags and control bits ---- */
#define F_CF 1u
#define F_PF 4u
#define F_ZF 0x40u
#define F_SF 0x80u
#define F_TF 0x100u
#define F_IF 0x200u
#define F_DF 0x400u
#define F_OF 0x800u
#define F_IOPL(n) ((u32)(n) << 12)
#define F_NT 0x4000u
#define F_RF 0x10000u
#define F_VM 0x20000u
#define F_AC 0x40000u
#define F_VIF 0x80000u
#define F_VIP 0x100000u
#define F_ID 0x200000u
#define CR0_PE 1u
#define CR0_MP 2u
#define CR0_EM 4u
#define CR0_TS 8u
#define CR0_ET 0x10u
#define CR0_NE 0x20u
#define CR0_WP 0x10000u
#define CR0_AM 0x40000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u
#define CR4_VME 1u
#define CR4_PVI 2u
#define CR4_TSD 4u
#define CR4_DE 8u
#define CR4_PSE 0x10u
#define CR4_PAE 0x20u
#define CR4_MCE 0x40u
#define CR4_PGE 0x80u
#define CR4_PCE 0x100u
#define CR4_OSFXSR 0x200u
#define CR4_OSXMMEXCPT 0x400u
#define CR4_UMIP 0x800u
#define CR4_LA57 0x1000u
#define CR4_FSGSBASE 0x10000u
#define CR4_PCIDE 0x20000u
#define CR4_OSXSAVE 0x40000u
#define CR4_SMEP 0x100000u
#define CR4_SMAP 0x200000u
#define CR4_PKE 0x400000u
#define MSR_EFER 0xc0000080u
#define EFER_SCE 1u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define EFER_NXE 0x800u

/* ---- selectors of the base GDT (the same places in 32- and 64-bit programs) ---- */
#define KCS 0x08   /* the program's own code: 64-bit or flat 32-bit */
#define KDS 0x10
#define KCS32 0x18
#define KCS16 0x20
#define UCS32 0x2b
#define UDS 0x33
#define UCS64 0x3b
#define KDS16 0x40
#define TSS_SEL 0x50 /* two slots in 64-bit programs */
#define LDT_SEL 0x60
#define TEST_SEL 0x80 /* from here on free for cases */
#define GDT_SLOTS 64

/* ---- registers and traps ---- */
struct regs {
    word ax, bx, cx, dx, si, di, bp;
#ifdef __x86_64__
    word r8, r9, r10, r11, r12, r13, r14, r15;
#endif
    word ds, es, fs, gs;
    word vector, error;
    word ip, cs, flags, sp, ss;
#ifndef __x86_64__
    word v_es, v_ds, v_fs, v_gs; /* in virtual-8086 mode */
#endif
    word cr2, dr6;
    word start;
};
typedef void (*handler)(struct regs *frame);
extern handler handlers[256]; /* a vector with a handler returns to the interrupted code */

struct regs kernel_regs(void); /* CPL 0, IF clear, a stack of its own */
struct regs user_regs(void);   /* CPL 3 */
void run_at(struct regs *r, const void *code); /* run until any trap or interrupt; r then holds its state */
/* Checks vector and error code, and that the saved instruction pointer is `offset` bytes into the code. */
int trapped_at(const struct regs *r, unsigned vector, word error, long offset, int line);
#define TRAPPED(r, vector, error, offset) trapped_at(r, vector, error, offset, __LINE__)
#define DONE(r) done_at(r, __LINE__)
int done_at(const struct regs *r, int line); /* the code ran to its end (`int 0x81`) */
extern const char exec_iret[];               /* the IRET by which run_at enters the code */

/* A snippet in Intel syntax, ended by `int 0x81`; gives its address. */
#define SNIPPET_(bits, body)                                                                       \
    ({                                                                                             \
        const void *p_;                                                                            \
        asm volatile("movl $771f, %k0\n.pushsection .snip,\"ax\"\n.code" bits "\n.intel_syntax noprefix\n" \
                     "771: " body "\nint 0x81\n.att_syntax prefix\n.popsection\n.code" OWN_BITS "\n" \
                     : "=r"(p_));                                                                  \
        p_;                                                                                        \
    })
#ifdef __x86_64__
#define OWN_BITS "64"
#define CODE(body) SNIPPET_("64", body)
#else
#define OWN_BITS "32"
#define CODE(body) SNIPPET_("32", body)
#endif
#define CODE32(body) SNIPPET_("32", body)
#define CODE16(body) SNIPPET_("16", body)
#define RUN(r, body) run_at(r, CODE(body))
#define RUN32(r, body) run_at(r, CODE32(body))
#define RUN16(r, body) run_at(r, CODE16(body))

/* ---- descriptors ---- */
extern u64 gdt[GDT_SLOTS];
extern u64 ldt[32];
/* access: the byte at bits 40-47; flags: bits 52-55 (G, D/B, L, AVL). */
u64 descriptor(u32 base, u32 limit, u8 access, u8 flags);
void set_gdt(unsigned selector, u64 value);
#define G4K 8
#define DB 4
#define LM 2
void load_gdt(void);
void load_idt(void);
void set_limits(u16 gdt_limit, u16 idt_limit);
#ifdef __x86_64__
struct tss {
    u32 reserved0;
    u64 rsp[3], reserved1, ist[7], reserved2;
    u16 reserved3, iomap;
    u8 map[8193];
} __attribute__((packed));
struct gate {
    u16 offset0, selector;
    u8 ist, type;
    u16 offset1;
    u32 offset2, reserved;
};
void set_gdt16(unsigned selector, u64 base, u32 limit, u8 access); /* a system descriptor of 16 bytes */
void call_gate(unsigned selector, u16 target, word offset, u8 access);
#else
struct tss {
    u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u32 es, cs, ss, ds, fs, gs, ldt;
    u16 trap, iomap;
    u8 redirect[32];
    u8 map[8193];
} __attribute__((packed));
struct gate {
    u16 offset0, selector;
    u8 count, type;
    u16 offset1;
};
void call_gate(unsigned selector, u16 target, word offset, u8 access, u8 words);
#endif
extern struct tss tss;
extern struct gate idt[256];
void set_gate(unsigned vector, u16 selector, const void *offset, u8 type, u8 ist);
extern const char trap_stubs[]; /* 256 stubs, 16 bytes apart */
#define STUB(vector) ((const void *)(trap_stubs + 16 * (vector)))
#define GATE_INT 0x8e
#define GATE_TRAP 0x8f
void baseline(void); /* the state in which each case starts */

/* ---- paging of 64-bit programs: 4 GiB identity in 2 MiB pages, U=1 W=1 ---- */
#define P_P 1ull
#define P_W 2ull
#define P_U 4ull
#define P_PWT 8ull
#define P_PCD 0x10ull
#define P_A 0x20ull
#define P_D 0x40ull
#define P_PS 0x80ull
#define P_G 0x100ull
#define P_PAT 0x1000ull
#define P_NX (1ull << 63)
#define P_ADDR 0x000ffffffffff000ull
#define PF_P 1
#define PF_W 2
#define PF_U 4
#define PF_RSVD 8
#define PF_I 16
#define PF_PK 32
#ifdef __x86_64__
#define TEST_VA 0x8000000000ull /* PML4 slot 1, empty at the start of a case */
extern u64 pml4[512];
u64 *map_page(u64 va, u64 pa, u64 flags, int level); /* level 1: 4 KiB, 2: 2 MiB, 3: 1 GiB; the entry */
u64 *entry_of(u64 va, int level);                    /* level 4: PML4 entry ... 1: PTE */
void identity_user(int user);                        /* U/S of the identity map as a whole */
#endif
void *new_page(void); /* a zeroed 4 KiB page, free again when the case ends */

/* ---- local APIC, PIC, other CPUs ---- */
#define APIC_BASE 0xfee00000u
u32 apic_read(unsigned reg);
void apic_write(unsigned reg, u32 value);
void apic_enable(void);
void pic_remap(void); /* vectors 0x20 and 0x28, all masked */
void delay_us(u32 us); /* by the PIT's channel 2 */
#ifdef __x86_64__
/* Starts the AP with this APIC id on `entry` (in 64-bit mode, its own stack, GDT, IDT, TSS). */
int start_ap(u32 apic_id, void (*entry)(u32 index));
#define MAX_AP 4
#define AP_STACK 16384
#endif

/* ---- instructions ---- */
static inline void outb(u16 port, u8 v) { asm volatile("outb %0,%1" : : "a"(v), "Nd"(port)); }
static inline void outl(u16 port, u32 v) { asm volatile("outl %0,%1" : : "a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 inl(u16 port) { u32 v; asm volatile("inl %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline u64 rdmsr(u32 n) { u32 a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(n)); return a | (u64)d << 32; }
static inline void wrmsr(u32 n, u64 v) { asm volatile("wrmsr" : : "c"(n), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdtsc(void) { u32 a, d; asm volatile("lfence; rdtsc" : "=a"(a), "=d"(d)); return a | (u64)d << 32; }
static inline void cpuid(u32 leaf, u32 sub, u32 out[4]) { asm volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(sub)); }
#define CR_ACCESS(n) \
    static inline word read_cr##n(void) { word v; asm volatile("mov %%cr" #n ",%0" : "=r"(v) : : "memory"); return v; } \
    static inline void write_cr##n(word v) { asm volatile("mov %0,%%cr" #n : : "r"(v) : "memory"); }
CR_ACCESS(0) CR_ACCESS(2) CR_ACCESS(3) CR_ACCESS(4)
#define DR_ACCESS(n) \
    static inline word read_dr##n(void) { word v; asm volatile("mov %%db" #n ",%0" : "=r"(v) : : "memory"); return v; } \
    static inline void write_dr##n(word v) { asm volatile("mov %0,%%db" #n : : "r"(v) : "memory"); }
DR_ACCESS(0) DR_ACCESS(1) DR_ACCESS(2) DR_ACCESS(3) DR_ACCESS(6) DR_ACCESS(7)
static inline void invlpg(word va) { asm volatile("invlpg (%0)" : : "r"(va) : "memory"); }
static inline void cli(void) { asm volatile("cli" : : : "memory"); }
static inline void pause(void) { asm volatile("pause" : : : "memory"); }

/* Does the CPU have a feature? The word index is that of `cpu_word`. */
enum { C1_ECX, C1_EDX, C7_EBX, C7_ECX, C7_EDX, CX_ECX, CX_EDX, CD1_EAX };
u32 cpu_word(int index);
#define HAS(index, bit) ((cpu_word(index) >> (bit)) & 1)
#define HAS_PSE36 HAS(C1_EDX, 17)
#define HAS_PCID HAS(C1_ECX, 17)
#define HAS_X2APIC HAS(C1_ECX, 21)
#define HAS_DEADLINE HAS(C1_ECX, 24)
#define HAS_XSAVE HAS(C1_ECX, 26)
#define HAS_AVX HAS(C1_ECX, 28)
#define HAS_SEP HAS(C1_EDX, 11)
#define HAS_VME HAS(C1_EDX, 1)
#define HAS_FSGSBASE HAS(C7_EBX, 0)
#define HAS_SMEP HAS(C7_EBX, 7)
#define HAS_INVPCID HAS(C7_EBX, 10)
#define HAS_SMAP HAS(C7_EBX, 20)
#define HAS_UMIP HAS(C7_ECX, 2)
#define HAS_PKU HAS(C7_ECX, 3)
#define HAS_LA57 HAS(C7_ECX, 16)
#define HAS_RDPID HAS(C7_ECX, 22)
#define HAS_RDTSCP HAS(CX_EDX, 27)
#define HAS_1G HAS(CX_EDX, 26)
#define HAS_XSAVEOPT HAS(CD1_EAX, 0)
#define HAS_XSAVEC HAS(CD1_EAX, 1)
#define HAS_XGETBV1 HAS(CD1_EAX, 2)
int is_intel(void);
unsigned maxphyaddr(void);

void *memset(void *to, int byte, size_t n);
void *memcpy(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);

#endif
