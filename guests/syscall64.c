/* SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, FSGSBASE, the segment bases.
 * SDM vol. 2 (each instruction), vol. 3 section 5.8.7-8; APM vol. 3. */
#include "guest.h"

#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_FMASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS 0xc0000102u
#define MSR_SYSENTER_CS 0x174u
#define NONCANON 0x0000800000000000ull

/* STAR: SYSCALL loads CS 8 and SS 0x10; SYSRET CS 0x2b (32) or 0x3b (64) and SS 0x33. */
static void set_star(void) { wrmsr(MSR_STAR, (u64)(UCS32 & ~3) << 48 | (u64)KCS << 32); }

TEST(syscall_enters_the_kernel)
{
    set_star();
    wrmsr(MSR_LSTAR, (word)CODE("mov rbx, cs; mov rdx, ss; mov r12, rsp; pushfq; pop r13"));
    wrmsr(MSR_FMASK, F_IF | F_DF | F_CF);
    struct regs r = user_regs();
    r.flags |= F_IF | F_CF | F_ZF | F_DF;
    word sp = r.sp;
    RUN(&r, "nop; syscall; nop");
    if (DONE(&r)) {
        EXPECT_EQ(r.cx, r.start + 3);
        EXPECT_EQ(r.r11, 2 | F_IF | F_CF | F_ZF | F_DF);
        EXPECT_EQ(r.r13, 2 | F_ZF);
        EXPECT_EQ(r.bx & 0xffff, KCS);
        EXPECT_EQ(r.dx & 0xffff, KCS + 8);
        EXPECT_EQ(r.r12, sp); /* RSP is not changed */
        EXPECT_EQ(r.cs, KCS);
    }
}

TEST(syscall_clears_rf_in_r11_and_flags)
{
    set_star();
    wrmsr(MSR_LSTAR, (word)CODE("nop"));
    wrmsr(MSR_FMASK, 0);
    struct regs r = user_regs();
    r.flags |= F_RF | F_AC;
    RUN(&r, "syscall");
    if (DONE(&r)) {
        EXPECT_EQ(r.r11 & F_RF, 0);
        EXPECT_EQ(r.flags & F_AC, F_AC);
    }
}

TEST(syscall_without_sce_is_ud)
{
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~(u64)EFER_SCE);
    struct regs r = user_regs();
    RUN(&r, "syscall");
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0x07");
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(sysret_to_64_bit)
{
    set_star();
    struct regs r = kernel_regs();
    r.cx = (word)CODE("mov rbx, ss; mov rdx, rsp");
    r.r11 = F_CF | F_IF | F_AC | F_RF | F_VM;
    word sp = r.sp;
    RUN(&r, ".byte 0x48, 0x0f, 0x07");
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, UCS64);
        EXPECT_EQ(r.ss, UDS);
        EXPECT_EQ(r.bx & 0xffff, UDS);
        EXPECT_EQ(r.dx, sp);
        EXPECT_EQ(r.flags & (F_CF | F_IF | F_AC | F_RF | F_VM | 2), F_CF | F_IF | F_AC | 2);
    }
}

TEST(sysret_to_compatibility)
{
    set_star();
    struct regs r = kernel_regs();
    r.cx = (word)CODE32("mov ebx, cs; dec eax; inc eax") | 0xabcd00000000; /* only ECX counts */
    r.r11 = 2;
    r.ax = 5;
    RUN(&r, ".byte 0x0f, 0x07");
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, UCS32);
        EXPECT_EQ(r.ss, UDS);
        EXPECT_EQ(r.bx & 0xffff, UCS32);
        EXPECT_EQ(r.ax, 5); /* 48 would have been a REX prefix in 64-bit mode */
    }
}

TEST(sysret_checks)
{
    set_star();
    struct regs r = user_regs();
    RUN(&r, ".byte 0x48, 0x0f, 0x07");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.cx = NONCANON;
    r.r11 = 2;
    RUN(&r, ".byte 0x48, 0x0f, 0x07");
    /* Intel: #GP of SYSRET at CPL 0; AMD: at the target, CPL 3. */
    if (is_intel()) {
        TRAPPED(&r, V_GP, 0, 0);
        EXPECT_EQ(r.cs, KCS);
    } else {
        EXPECT_EQ(r.vector, V_GP);
    }
}

TEST(syscall_from_compatibility)
{
    set_star();
    wrmsr(MSR_CSTAR, (word)CODE("mov rbx, cs; mov rdx, 0x123456789abcdef"));
    struct regs r = user_regs();
    r.cs = UCS32;
    RUN32(&r, "syscall");
    if (is_intel()) {
        TRAPPED(&r, V_UD, 0, 0);
    } else if (DONE(&r)) {
        EXPECT_EQ(r.cs, KCS);
        EXPECT_EQ(r.dx, 0x123456789abcdef);
    }
}

TEST(sysenter_and_sysexit)
{
    NEED(HAS_SEP && is_intel());
    wrmsr(MSR_SYSENTER_CS, 0);
    struct regs r = user_regs();
    RUN(&r, "sysenter");
    TRAPPED(&r, V_GP, 0, 0);
    /* CS, CS+8 (SS), CS+16 (32-bit user), CS+24, CS+32 (64-bit user), CS+40: lay them out. */
    u16 base = TEST_SEL;
    set_gdt(base, descriptor(0, 0xfffff, 0x9b, G4K | LM));
    set_gdt(base + 8, descriptor(0, 0xfffff, 0x93, G4K | DB));
    set_gdt(base + 16, descriptor(0, 0xfffff, 0xfb, G4K | DB));
    set_gdt(base + 24, descriptor(0, 0xfffff, 0xf3, G4K | DB));
    set_gdt(base + 32, descriptor(0, 0xfffff, 0xfb, G4K | LM));
    set_gdt(base + 40, descriptor(0, 0xfffff, 0xf3, G4K | DB));
    wrmsr(MSR_SYSENTER_CS, base);
    word stack = (word)new_page() + 4096;
    wrmsr(0x175, stack);
    wrmsr(0x176, (word)CODE("mov rbx, cs; mov rdx, ss; mov r12, rsp; pushfq; pop r13"));
    r = user_regs();
    r.flags |= F_IF | F_CF;
    RUN(&r, "sysenter");
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, base);
        EXPECT_EQ(r.dx & 0xffff, base + 8);
        EXPECT_EQ(r.r12, stack);
        EXPECT_EQ(r.r13 & (F_IF | F_CF), F_CF);
    }
    r = user_regs(); /* from compatibility mode too */
    r.cs = UCS32;
    RUN32(&r, "sysenter");
    if (DONE(&r))
        EXPECT_EQ(r.cs, base);
    r = kernel_regs();
    r.cx = 0x9000, r.dx = (word)CODE("mov rbx, rsp");
    RUN(&r, ".byte 0x48, 0x0f, 0x35");
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, (base + 32) | 3);
        EXPECT_EQ(r.ss, (base + 40) | 3);
        EXPECT_EQ(r.bx, 0x9000);
    }
    r = kernel_regs();
    r.cx = 0x9000, r.dx = (word)CODE32("mov ebx, esp; dec eax; inc eax");
    RUN(&r, ".byte 0x0f, 0x35");
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, (base + 16) | 3);
        EXPECT_EQ(r.ss, (base + 24) | 3);
    }
    r = kernel_regs();
    r.cx = 0, r.dx = NONCANON;
    RUN(&r, ".byte 0x48, 0x0f, 0x35");
    TRAPPED(&r, V_GP, 0, 0);
    r = user_regs();
    RUN(&r, ".byte 0x0f, 0x35");
    TRAPPED(&r, V_GP, 0, 0);
    wrmsr(MSR_SYSENTER_CS, 3); /* index 0 */
    r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0x35");
    TRAPPED(&r, V_GP, 0, 0);
    wrmsr(MSR_SYSENTER_CS, 0);
}

TEST(swapgs)
{
    wrmsr(MSR_GS_BASE, 0x1111000);
    wrmsr(MSR_KERNEL_GS, 0x2222000);
    struct regs r = kernel_regs();
    RUN(&r, "swapgs");
    DONE(&r);
    EXPECT_EQ(rdmsr(MSR_GS_BASE), 0x2222000);
    EXPECT_EQ(rdmsr(MSR_KERNEL_GS), 0x1111000);
    r = user_regs();
    RUN(&r, "swapgs");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.cs = KCS32;
    RUN32(&r, ".byte 0x0f, 0x01, 0xf8"); /* not in compatibility mode */
    TRAPPED(&r, V_UD, 0, 0);
    wrmsr(MSR_KERNEL_GS, 0);
}

TEST(gs_base_addresses_memory)
{
    u64 *page = new_page();
    page[3] = 0x3333;
    wrmsr(MSR_GS_BASE, (word)page);
    wrmsr(MSR_FS_BASE, (word)page + 8);
    struct regs r = kernel_regs();
    r.cx = 16;
    RUN(&r, "mov rax, gs:[24]; mov rbx, fs:[rcx]; .byte 0x65, 0x48, 0x8d, 0x14, 0x25, 24, 0, 0, 0");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x3333);
        EXPECT_EQ(r.bx, 0x3333);
        EXPECT_EQ(r.dx, 24);
    }
    /* DS, ES, SS and CS overrides are ignored */
    set_gdt(TEST_SEL, descriptor((word)page, 0xfff, 0x93, 0));
    r = kernel_regs();
    r.es = TEST_SEL;
    r.bx = (word)page + 24;
    RUN(&r, "mov rax, es:[rbx]");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 0x3333);
    /* base + offset is checked for canonical form as a whole */
    wrmsr(MSR_GS_BASE, 0x00007fffffffffff);
    r = kernel_regs();
    RUN(&r, "mov rax, gs:[8]");
    TRAPPED(&r, V_GP, 0, 0);
    wrmsr(MSR_GS_BASE, -16ull); /* and wraps */
    r = kernel_regs();
    r.bx = (word)page + 24 + 16;
    RUN(&r, "mov rax, gs:[rbx]");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 0x3333);
}

TEST(loading_fs_sets_the_base_from_the_descriptor)
{
    wrmsr(MSR_FS_BASE, 0xffff800012345000);
    set_gdt(TEST_SEL, descriptor(0x89abcdef, 0xfffff, 0x93, G4K | DB));
    struct regs r = kernel_regs();
    r.ax = TEST_SEL;
    RUN(&r, "mov fs, eax");
    DONE(&r);
    EXPECT_EQ(rdmsr(MSR_FS_BASE), 0x89abcdef);
    wrmsr(MSR_FS_BASE, 0x1234);
    r = kernel_regs();
    RUN(&r, "xor eax, eax; mov fs, eax"); /* null: Intel clears the base, AMD keeps it */
    DONE(&r);
    if (is_intel())
        EXPECT_EQ(rdmsr(MSR_FS_BASE), 0);
}

TEST(fsgsbase)
{
    NEED(HAS_FSGSBASE);
    struct regs r = user_regs();
    RUN(&r, "rdfsbase rax");
    TRAPPED(&r, V_UD, 0, 0);
    write_cr4(read_cr4() | CR4_FSGSBASE);
    r = user_regs();
    r.bx = 0x123456789abc;
    RUN(&r, "wrfsbase rbx; rdfsbase rax; wrgsbase rax; rdgsbase rcx; wrgsbase ebx; rdgsbase rdx; rdfsbase esi");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x123456789abc);
        EXPECT_EQ(r.cx, 0x123456789abc);
        EXPECT_EQ(r.dx, 0x56789abc); /* the 32-bit form zero-extends */
        EXPECT_EQ(r.si, 0x56789abc);
    }
    r = user_regs();
    r.bx = 1ull << 56; /* non-canonical in 57 bits too: the CPU's width counts, not CR4.LA57 */
    RUN(&r, "wrgsbase rbx");
    TRAPPED(&r, V_GP, 0, 0);
    r = user_regs();
    r.cs = UCS32;
    RUN32(&r, ".byte 0xf3, 0x0f, 0xae, 0xc0"); /* 64-bit mode only */
    TRAPPED(&r, V_UD, 0, 0);
    wrmsr(MSR_FS_BASE, 0);
    wrmsr(MSR_GS_BASE, 0);
}

TEST(noncanonical_msr_writes)
{
    static const u32 list[] = {MSR_LSTAR, MSR_CSTAR, MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS, 0x175, 0x176};
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct regs r = kernel_regs();
        u64 before = rdmsr(list[i]);
        r.cx = list[i], r.dx = 0x01000000;
        RUN(&r, "wrmsr");
        if (!is_intel() && (list[i] == 0x175 || list[i] == 0x176))
            continue;
        if (!TRAPPED(&r, V_GP, 0, 0))
            put("(MSR %x)\n", list[i]);
        EXPECT_EQ(rdmsr(list[i]), before);
        r = kernel_regs();
        r.cx = list[i], r.dx = 0xffff8000, r.ax = 0x1000;
        RUN(&r, "wrmsr; rdmsr");
        if (DONE(&r))
            EXPECT_EQ(r.dx, 0xffff8000);
        wrmsr(list[i], 0);
    }
}
