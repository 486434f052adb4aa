/* Mode switches: protected to real and back, real mode itself, "unreal" limits, protected to long and
 * compatibility mode and back, and what each switch refuses.
 * SDM vol. 3 sections 10.8.5, 10.9 (mode switching), 21.1 (real-address mode). */
#include "guest.h"

/* The way into real mode and back, copied to 0x6000; real-mode code runs at 0x2000:0. */
#define BLOB 0x6000
#define SEG 0x2000
struct blob_regs {
    u32 ax, bx, cx, dx, si, di, bp, sp;
    u16 ip, cs, flags, ss, ds, es, fs, gs;
    u32 vector, eflags;
};
extern const u8 blob[], blob_end[], blob_in[], blob_out[], blob_stubs[];
extern void blob_enter(void);
asm(".pushsection .snip,\"ax\"\n.code16\nblob:\n" /* 16-bit protected mode, CS base 0x6000 */
    "mov %cr0, %eax\n and $~1, %al\n mov %eax, %cr0\n ljmp $0x600, $(1f - blob)\n"
    "1: cs movw (blob_in - blob + 38), %ss\n cs movl (blob_in - blob + 28), %esp\n"
    "cs pushw (blob_in - blob + 36)\n cs pushw (blob_in - blob + 34)\n cs pushw (blob_in - blob + 32)\n"
    "cs movw (blob_in - blob + 40), %ds\n cs movw (blob_in - blob + 42), %es\n"
    "testw $1, %cs:(blob_keep - blob)\n jnz 2f\n"
    "cs movw (blob_in - blob + 44), %fs\n cs movw (blob_in - blob + 46), %gs\n"
    "2: cs movl (blob_in - blob), %eax\n cs movl (blob_in - blob + 4), %ebx\n cs movl (blob_in - blob + 8), %ecx\n"
    "cs movl (blob_in - blob + 12), %edx\n cs movl (blob_in - blob + 16), %esi\n cs movl (blob_in - blob + 20), %edi\n"
    "cs movl (blob_in - blob + 24), %ebp\n iretw\n"
    "blob_stubs: .rept 256\n call blob_common\n nop\n .endr\n"
    "blob_common: cs movl %eax, (blob_out - blob)\n pop %ax\n sub $(blob_stubs - blob + 3), %ax\n shr $2, %ax\n movzwl %ax, %eax\n"
    "cs movl %eax, (blob_out - blob + 48)\n pushfl\n pop %eax\n cs movl %eax, (blob_out - blob + 52)\n"
    "cs popw (blob_out - blob + 32)\n cs popw (blob_out - blob + 34)\n cs popw (blob_out - blob + 36)\n"
    "cs movl %ebx, (blob_out - blob + 4)\n cs movl %ecx, (blob_out - blob + 8)\n cs movl %edx, (blob_out - blob + 12)\n"
    "cs movl %esi, (blob_out - blob + 16)\n cs movl %edi, (blob_out - blob + 20)\n cs movl %ebp, (blob_out - blob + 24)\n"
    "cs movl %esp, (blob_out - blob + 28)\n cs movw %ss, (blob_out - blob + 38)\n cs movw %ds, (blob_out - blob + 40)\n"
    "cs movw %es, (blob_out - blob + 42)\n cs movw %fs, (blob_out - blob + 44)\n cs movw %gs, (blob_out - blob + 46)\n"
    "cli\n mov %cr0, %eax\n or $1, %al\n mov %eax, %cr0\n ljmpl $8, $blob_back\n"
    ".align 4\n blob_in: .skip 56\n blob_out: .skip 56\n blob_keep: .word 0\n blob_end:\n"
    ".code32\nblob_enter: push %ebx\n push %esi\n push %edi\n push %ebp\n mov %esp, blob_sp\n"
    "mov $0x88, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %ss\n testb $1, %cs:blob_big\n jnz 1f\n mov %eax, %fs\n mov %eax, %gs\n"
    "1: ljmp $0x80, $0\n"
    "blob_back: mov $0x10, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %fs\n mov %eax, %gs\n mov %eax, %ss\n"
    "mov blob_sp, %esp\n cld\n pop %ebp\n pop %edi\n pop %esi\n pop %ebx\n ret\n"
    ".popsection\n.pushsection .data\n blob_sp: .long 0\n blob_big: .long 0\n.popsection");
extern u8 blob_keep[], blob_big[];

static struct blob_regs real_regs(void)
{
    struct blob_regs r;
    memset(&r, 0, sizeof r);
    r.cs = SEG, r.ss = 0x3000, r.sp = 0x1000;
    r.ds = 0x4000, r.es = 0x5000, r.flags = 2;
    return r;
}

static u16 real_idt_limit = 0x3ff;
static void *low_at(word address)
{
    void *p = (void *)address;
    asm("" : "+r"(p)); /* the compiler does not believe in objects at low addresses */
    return p;
}
#define LOW(address) low_at((word)(address))

/* Runs 16-bit code in real mode until an interrupt or exception. */
static void real_run(struct blob_regs *r, const void *code, int big_fs)
{
    u8 *to = LOW(BLOB);
    u32 *ivt = LOW(0);
    memcpy(to, blob, (size_t)(blob_end - blob));
    for (u32 v = 0; v < 256; v++)
        ivt[v] = (u32)BLOB >> 4 << 16 | (u32)(blob_stubs - blob + 4 * (word)v);
    if (code)
        memcpy(LOW(SEG << 4), code, 256);
    memcpy(to + (blob_in - blob), r, sizeof *r);
    to[blob_keep - (u8 *)blob] = (u8)big_fs;
    blob_big[0] = (u8)big_fs;
    set_gdt(0x80, descriptor(BLOB, 0xffff, 0x9b, 0));
    set_gdt(0x88, descriptor(0, 0xffff, 0x93, 0));
    struct { u16 limit; u32 base; } __attribute__((packed)) real = {real_idt_limit, 0};
    asm volatile("lidt %0" : : "m"(real));
    blob_enter();
    set_limits(sizeof gdt - 1, sizeof idt - 1);
    memcpy(r, to + (blob_out - blob), sizeof *r);
}
#define REAL(r, body) real_run(r, CODE16(body), 0)
static void real_trapped(const struct blob_regs *r, unsigned vector, unsigned ip, int at)
{
    if (r->vector != vector || (ip != 0xfffff && r->ip != ip))
        fail("vector %d at %x:%x, want %d at +%x (line %d)", r->vector, r->cs, r->ip, vector, ip, at);
}
#define REAL_TRAPPED(r, vector, ip) real_trapped(&(r), vector, ip, __LINE__)
#define REAL_DONE(r) real_trapped(&(r), V_DONE, 0xfffff, __LINE__)

TEST(real_mode_and_back)
{
    struct blob_regs r = real_regs();
    r.ax = 0x11223344;
    REAL(&r, "mov ebx, cr0; mov cx, cs; mov dx, ss; smsw si; mov edi, eax; inc ax");
    REAL_DONE(r);
    EXPECT_EQ(r.bx & 0x80000001, 0);
    EXPECT_EQ(r.cx & 0xffff, SEG);
    EXPECT_EQ(r.dx & 0xffff, 0x3000);
    EXPECT_EQ(r.si & 1, 0);
    EXPECT_EQ(r.di, 0x11223344);
    EXPECT_EQ(r.ax, 0x11223345);
    EXPECT_EQ(r.sp & 0xffff, 0x1000);
}

TEST(real_segments_and_wrap)
{
    struct blob_regs r = real_regs();
    *(volatile u32 *)LOW(0x43210 + 0x8765) = 0xfeedbeef;
    REAL(&r, "mov ax, 0x4321; mov ds, ax; mov ebx, [0x8765]");
    REAL_DONE(r);
    EXPECT_EQ(r.bx, 0xfeedbeef);
    EXPECT_EQ(r.ds, 0x4321);
    r = real_regs();
    REAL(&r, "mov ax, [0xffff]"); /* a word at the segment's end: #GP, no error code pushed */
    REAL_TRAPPED(r, V_GP, 0);
    EXPECT_EQ(r.sp & 0xffff, 0x1000);
    r = real_regs();
    REAL(&r, "mov esi, 0x10000; mov al, [esi]");
    REAL_TRAPPED(r, V_GP, 6);
    r = real_regs();
    REAL(&r, "mov bp, 0xffff; mov ax, [bp]");
    REAL_TRAPPED(r, V_SS, 3);
    r = real_regs();
    REAL(&r, "mov bx, 0xfff0; mov si, 0x20; mov byte ptr [0x10], 0x99; mov al, [bx+si]"); /* 16-bit addresses wrap */
    REAL_DONE(r);
    EXPECT_EQ(r.ax & 0xff, 0x99);
    r = real_regs();
    REAL(&r, "mov ax, 0xffff; mov ds, ax; mov ebx, [0x10]"); /* the HMA, A20 open */
    REAL_DONE(r);
    EXPECT_EQ(r.bx, *(volatile u32 *)LOW(0x100000));
}

TEST(real_stack_wrap)
{
    struct blob_regs r = real_regs();
    REAL(&r, "mov eax, 0xabcd1234; mov sp, 0; push eax; mov bx, sp; mov sp, 0x1000");
    REAL_DONE(r);
    EXPECT_EQ(r.bx & 0xffff, 0xfffc);
    EXPECT_EQ(*(volatile u32 *)LOW(0x3fffc), 0xabcd1234);
}

TEST(real_interrupts)
{
    struct blob_regs r = real_regs();
    r.flags = 2 | F_CF | F_DF;
    REAL(&r, "nop; int 0x60");
    REAL_TRAPPED(r, 0x60, 3);
    EXPECT_EQ(r.flags & 0xfd7, 2 | F_CF | F_DF);
    EXPECT_EQ(r.eflags & (F_IF | F_TF), 0);
    r = real_regs();
    REAL(&r, "nop; int3");
    REAL_TRAPPED(r, V_BP, 2);
    r = real_regs();
    REAL(&r, "mov al, 0x7f; inc al; into");
    REAL_TRAPPED(r, V_OF, 5);
    r = real_regs();
    REAL(&r, "xor cx, cx; div cx");
    REAL_TRAPPED(r, V_DE, 2); /* a fault: the instruction itself */
    r = real_regs();
    REAL(&r, "ud2");
    REAL_TRAPPED(r, V_UD, 0);
    r = real_regs();
    REAL(&r, "mov word ptr [0], 5; mov word ptr [2], 9; mov ax, 4; bound ax, [0]");
    REAL_TRAPPED(r, V_BR, 15);
    r = real_regs();
    REAL(&r, "mov word ptr [0], 5; mov word ptr [2], 9; mov ax, 9; bound ax, [0]");
    REAL_DONE(r);
    r = real_regs();
    r.flags |= F_TF;
    REAL(&r, "nop; nop");
    REAL_TRAPPED(r, V_DB, 1);
}

TEST(real_idt_limit)
{
    struct blob_regs r = real_regs();
    real_idt_limit = 0x100; /* vectors up to 0x3f */
    REAL(&r, "nop; int 0x50");
    real_idt_limit = 0x3ff;
    REAL_TRAPPED(r, V_GP, 1);
}

TEST(real_undefined_instructions)
{
    static const struct { const char *what; u8 code[4]; } list[] = {
        {"sldt", {0x0f, 0, 0xc0}}, {"str", {0x0f, 0, 0xc8}}, {"lldt", {0x0f, 0, 0xd0}}, {"ltr", {0x0f, 0, 0xd8}},
        {"verr", {0x0f, 0, 0xe0}}, {"verw", {0x0f, 0, 0xe8}}, {"lar", {0x0f, 2, 0xc0}}, {"lsl", {0x0f, 3, 0xc0}},
        {"arpl", {0x63, 0xc0}}, {"lock nop", {0xf0, 0x90}}, {"mov cs", {0x8e, 0xc8}}};
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct blob_regs r = real_regs();
        real_run(&r, list[i].code, 0);
        if (r.vector != V_UD || r.ip != 0)
            fail("%s: vector %d at %x", list[i].what, r.vector, r.ip);
    }
}

TEST(real_flags_and_far_transfers)
{
    struct blob_regs r = real_regs();
    REAL(&r, "push 0x7202; popf; pushf; pop ax; cli; push 0x0002; popf; pushf; pop bx");
    REAL_DONE(r);
    EXPECT_EQ(r.ax & 0x7202, 0x7202); /* IOPL, NT and IF are all writable */
    EXPECT_EQ(r.bx & 0x7202, 0x0002);
    r = real_regs();
    u8 *far = LOW(0x28000);
    memcpy(far, "\xb8\x34\x12\xcb", 4); /* mov ax, 0x1234; retf */
    REAL(&r, ".byte 0x9a, 0, 0, 0, 0x28; mov bx, cs"); /* call 0x2800:0 */
    REAL_DONE(r);
    EXPECT_EQ(r.ax & 0xffff, 0x1234);
    EXPECT_EQ(r.bx & 0xffff, SEG);
    r = real_regs();
    REAL(&r, "mov dword ptr [0x10], 0x77778888; les di, [0x10]; lfs si, [0x10]");
    REAL_DONE(r);
    EXPECT_EQ(r.es, 0x7777);
    EXPECT_EQ(r.fs, 0x7777);
    EXPECT_EQ(r.di & 0xffff, 0x8888);
}

TEST(ip_beyond_64k_is_gp)
{
    struct blob_regs r = real_regs();
    u8 *code = LOW((SEG << 4) + 0xfffe);
    code[0] = 0x90, code[1] = 0x90;
    r.ip = 0xfffe;
    real_run(&r, NULL, 0);
    EXPECT_EQ(r.vector, V_GP); /* no wrap: IP 0x10000 violates CS's limit; 0 is what is pushed */
    EXPECT_EQ(r.cs, SEG);
}

TEST(unreal_limits)
{
    /* FS keeps the 4 GiB limit that protected mode gave it until it is loaded... real-mode loads keep it too. */
    struct blob_regs r = real_regs();
    u32 *page = new_page();
    page[5] = 0xb16b16;
    r.si = (word)page;
    asm volatile("mov %0, %%fs" : : "r"(KDS));
    real_run(&r, CODE16("mov ebx, fs:[esi+20]; xor ax, ax; mov fs, ax; mov ecx, fs:[esi+20]"), 1);
    REAL_DONE(r);
    EXPECT_EQ(r.bx, 0xb16b16);
    EXPECT_EQ(r.cx, 0xb16b16);
}

TEST(protected_mode_with_16_bit_code)
{
    /* 16-bit protected code in user space with a base: default sizes, 64 KiB addresses. */
    u8 *low = LOW(0x50000);
    memcpy(low, CODE16("mov ax, 0x1234; push ax; pop bx; mov ecx, 0x12345678; mov si, 0xfffe; lodsb"), 64);
    set_gdt(TEST_SEL + 0x20, descriptor(0x50000, 0xffff, 0xfb, 0));
    set_gdt(TEST_SEL + 0x28, descriptor(0x60000, 0xffff, 0xf3, 0));
    *(volatile u8 *)LOW(0x6fffe) = 0x42;
    struct regs r = user_regs();
    r.cs = (TEST_SEL + 0x20) | 3;
    r.ss = r.ds = (TEST_SEL + 0x28) | 3;
    r.sp = 0x100;
    run_at(&r, (void *)0);
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x1242);
        EXPECT_EQ(r.bx & 0xffff, 0x1234);
        EXPECT_EQ(r.cx, 0x12345678);
        EXPECT_EQ(r.si & 0xffff, 0xffff);
        EXPECT_EQ(r.ip, 3 + 1 + 1 + 6 + 3 + 1 + 2);
    }
}

/* ---- long mode from 32-bit protected mode and back ---- */
static u64 top[512] __attribute__((aligned(4096))), middle[512] __attribute__((aligned(4096))),
    bottom[512] __attribute__((aligned(4096)));
static void long_tables(void)
{
    memset(top, 0, 4096);
    memset(middle, 0, 4096);
    top[0] = (word)middle | 7;
    middle[0] = (word)bottom | 7;
    for (u32 i = 0; i < 512; i++)
        bottom[i] = (u64)i << 21 | 0x87;
    set_gdt(TEST_SEL, descriptor(0, 0xfffff, 0x9b, G4K | LM));
}
/* 64-bit code as bytes where the 32-bit assembler has no relocation for it: into 64-bit mode by a far
 * jump, some of its instructions, and back by a far return. EAX points to the facts. */
extern void enter_64(void), enter_64b(void);
asm(".pushsection .snip,\"ax\"\n.code32\n"
    "enter_64: mov 4(%esp), %ecx\n push $8\n push $2f\n mov %esp, %edx\n ljmp $0x80, $1f\n"
    "1: .byte 0x48, 0xb8, 0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12\n" /* mov rax, imm64 */
    ".byte 0x48, 0x0f, 0xc8, 0x48, 0x89, 0x01\n"                           /* bswap rax; mov [rcx], rax */
    ".byte 0x48, 0x89, 0x61, 0x08, 0xcb\n"                                 /* mov [rcx+8], rsp; retf */
    "2: mov %edx, 16(%ecx)\n ret\n"
    "enter_64b: mov 4(%esp), %edx\n push $8\n push $2f\n ljmp $0x80, $1f\n"
    "1: .byte 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0xcd, 0xab, 0x48, 0x09, 0xc2, 0xcb\n" /* or rdx, rax; retf */
    "2: mov %edx, (%edx)\n movl $1, 4(%edx)\n ret\n.popsection");
static void through_64(u64 *facts)
{
    asm volatile("push %0; call enter_64; pop %0" : "+r"(facts) : : "eax", "ecx", "edx", "memory");
}
static void with_upper_half(u64 *facts)
{
    asm volatile("push %0; call enter_64b; pop %0" : "+r"(facts) : : "eax", "ecx", "edx", "memory");
}
static int has_long_mode(void) { return (int)HAS(CX_EDX, 29); }

TEST(long_mode_and_back)
{
    NEED(has_long_mode());
    long_tables();
    static u64 facts[4];
    write_cr4(CR4_PAE);
    write_cr3((word)top);
    wrmsr(MSR_EFER, EFER_LME);
    EXPECT_EQ(rdmsr(MSR_EFER) & EFER_LMA, 0);
    write_cr0(read_cr0() | CR0_PG); /* compatibility mode: this 32-bit code goes on */
    u64 compat = rdmsr(MSR_EFER);
    through_64(facts);
    write_cr0(read_cr0() & ~CR0_PG);
    u64 after = rdmsr(MSR_EFER);
    wrmsr(MSR_EFER, 0);
    EXPECT_EQ(compat & (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA);
    EXPECT_EQ(facts[0], 0xf0debc9a78563412);
    EXPECT_EQ(facts[1], facts[2] & 0xffffffff); /* RSP was zero-extended, and came back */
    EXPECT_EQ(after & (EFER_LME | EFER_LMA), EFER_LME);
}

TEST(compatibility_mode_truncates)
{
    NEED(has_long_mode());
    long_tables();
    static u64 facts[4];
    write_cr4(CR4_PAE);
    write_cr3((word)top);
    wrmsr(MSR_EFER, EFER_LME);
    write_cr0(read_cr0() | CR0_PG);
    /* Set a register's upper half in 64-bit mode; 32-bit addresses do not see it. */
    with_upper_half(facts);
    write_cr0(read_cr0() & ~CR0_PG);
    wrmsr(MSR_EFER, 0);
    EXPECT_EQ(facts[0], (word)facts | 1ull << 32);
}

TEST(paging_refuses_half_set_up_long_mode)
{
    NEED(has_long_mode());
    long_tables();
    write_cr3((word)top);
    wrmsr(MSR_EFER, EFER_LME);
    struct regs r = kernel_regs();
    r.ax = read_cr0() | CR0_PG;
    RUN(&r, "mov cr0, eax"); /* PAE is clear */
    TRAPPED(&r, V_GP, 0, 0);
    write_cr4(CR4_PAE);
    /* CS.L set while LMA is clear: PG would enter 64-bit mode at once: refused. */
    r = kernel_regs();
    r.cs = TEST_SEL;
    r.ax = read_cr0() | CR0_PG;
    RUN(&r, "mov cr0, eax");
    TRAPPED(&r, V_GP, 0, 0);
    EXPECT_EQ(rdmsr(MSR_EFER) & EFER_LMA, 0);
    EXPECT_EQ(read_cr0() & CR0_PG, 0);
    wrmsr(MSR_EFER, 0);
}

TEST(far_jump_to_l_and_d_together)
{
    NEED(has_long_mode());
    long_tables();
    set_gdt(TEST_SEL, descriptor(0, 0xfffff, 0x9b, G4K | LM | DB)); /* L with D: reserved */
    static u32 pointer[2];
    pointer[0] = (word)CODE("nop"), pointer[1] = TEST_SEL;
    struct regs r = kernel_regs(); /* without LMA, L is not looked at */
    r.bx = (word)pointer;
    RUN(&r, "jmp fword ptr [ebx]");
    DONE(&r);
}

TEST(cr0_pe_with_lmsw)
{
    /* LMSW cannot clear PE. */
    struct regs r = kernel_regs();
    r.ax = 0;
    RUN(&r, "lmsw ax");
    DONE(&r);
    EXPECT_EQ(read_cr0() & CR0_PE, CR0_PE);
}

TEST(cr0_pg_without_pe)
{
    struct regs r = kernel_regs();
    r.ax = (read_cr0() | CR0_PG) & ~CR0_PE;
    RUN(&r, "mov cr0, eax");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.ax = (read_cr0() | CR0_NW) & ~CR0_CD;
    RUN(&r, "mov cr0, eax");
    TRAPPED(&r, V_GP, 0, 0);
}
