/* Single-step, breakpoints on code, data and I/O, RF, GD, DR4/DR5, DR6 and DR7 rules.
 * SDM vol. 3 chapter 18 (debug), table 6-2 (priorities). */
#include "guest.h"

#define DR7(n, rw, len) (0x400ul | 2ul << 2 * (n) | (word)(rw) << (16 + 4 * (n)) | (word)(len) << (18 + 4 * (n)))
#define RW_EXEC 0
#define RW_WRITE 1
#define RW_IO 2
#define RW_RW 3
#define L1 0
#define L2 1
#define L8 2
#define L4 3
#define DR6_BASE 0xffff0ff0u

TEST(single_step)
{
    struct regs r = kernel_regs();
    r.flags |= F_TF;
    RUN(&r, "nop; nop");
    TRAPPED(&r, V_DB, 0, 1); /* after the first instruction */
    EXPECT_EQ(r.dr6, DR6_BASE | 0x4000);
    EXPECT_EQ(r.flags & F_TF, F_TF);
    EXPECT_EQ(r.flags & F_RF, 0);
}

TEST(popf_with_tf_traps_after_the_next)
{
    struct regs r = kernel_regs();
    RUN(&r, "push 0x102; popfq; nop; nop");
    TRAPPED(&r, V_DB, 0, 7); /* 68 imm32, 9d, 90 */
}

TEST(mov_ss_holds_the_trap_back)
{
    struct regs r = kernel_regs();
    r.ax = KDS;
    r.flags |= F_TF;
    RUN(&r, "mov ss, eax; nop; nop");
    TRAPPED(&r, V_DB, 0, 3);
}

TEST(faulting_instruction_does_not_step)
{
    struct regs r = kernel_regs();
    r.flags |= F_TF;
    RUN(&r, "ud2");
    TRAPPED(&r, V_UD, 0, 0);
    EXPECT_EQ(r.dr6, DR6_BASE);
    EXPECT_EQ(r.flags & (F_TF | F_RF), F_TF | F_RF);
}

TEST(software_interrupt_clears_tf)
{
    struct regs r = kernel_regs();
    r.flags |= F_TF;
    RUN(&r, "int 0x60");
    TRAPPED(&r, 0x60, 0, 2);
    EXPECT_EQ(r.flags & F_TF, F_TF);
}

TEST(string_steps_each_iteration)
{
    u8 *page = new_page();
    struct regs r = kernel_regs();
    r.di = (word)page, r.cx = 5, r.ax = 0xaa;
    r.flags |= F_TF;
    RUN(&r, "rep stosb; nop");
    TRAPPED(&r, V_DB, 0, 0); /* RIP still at the string */
    EXPECT_EQ(r.cx, 4);
    EXPECT_EQ(r.di, (word)page + 1);
    r.flags |= F_TF;
    r.cx = 1;
    RUN(&r, "rep stosb; nop");
    TRAPPED(&r, V_DB, 0, 2);
    r = kernel_regs();
    r.cx = 0;
    r.flags |= F_TF;
    RUN(&r, "rep stosb; nop");
    TRAPPED(&r, V_DB, 0, 2);
}

TEST(syscall_with_tf)
{
    /* FMASK clears TF: the trap of SYSCALL itself is not taken. */
    wrmsr(0xc0000081, (u64)(UCS32 & ~3) << 48 | (u64)KCS << 32);
    wrmsr(0xc0000082, (word)CODE("nop; nop"));
    wrmsr(0xc0000084, F_TF);
    struct regs r = user_regs();
    r.flags |= F_TF;
    RUN(&r, "syscall");
    DONE(&r);
    EXPECT_EQ(r.r11 & F_TF, F_TF);
}

TEST(iret_with_tf_steps_one)
{
    /* The whole of run_at is an IRET: the instruction behind it runs before the trap. */
    struct regs r = user_regs();
    r.flags |= F_TF;
    RUN(&r, "mov eax, 7; nop");
    TRAPPED(&r, V_DB, 0, 5);
    EXPECT_EQ(r.ax, 7);
}

TEST(code_breakpoint_is_a_fault)
{
    const void *code = CODE("nop; mov eax, 5; nop");
    write_dr0((word)code + 1);
    write_dr7(DR7(0, RW_EXEC, L1));
    struct regs r = kernel_regs();
    run_at(&r, code);
    TRAPPED(&r, V_DB, 0, 1); /* before it */
    EXPECT_EQ(r.ax, 0);
    EXPECT_EQ(r.dr6, DR6_BASE | 1);
    EXPECT_EQ(r.flags & F_RF, 0); /* of all faults, only this leaves it to the handler to set RF */
    write_dr6(DR6_BASE);
    r = kernel_regs();
    r.flags |= F_RF; /* RF suppresses it for one instruction */
    run_at(&r, (const char *)code + 1);
    if (DONE(&r))
        EXPECT_EQ(r.flags & F_RF, 0); /* and is cleared by its completion */
}

TEST(code_breakpoint_before_other_faults)
{
    const void *code = CODE("ud2");
    write_dr1((word)code);
    write_dr7(DR7(1, RW_EXEC, L1));
    struct regs r = kernel_regs();
    run_at(&r, code);
    TRAPPED(&r, V_DB, 0, 0);
    EXPECT_EQ(r.dr6, DR6_BASE | 2);
    r.flags |= F_RF;
    run_at(&r, code);
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(data_breakpoint_is_a_trap)
{
    u64 *page = new_page();
    write_dr2((word)page + 8);
    write_dr7(DR7(2, RW_WRITE, L4));
    struct regs r = kernel_regs();
    r.bx = (word)page;
    RUN(&r, "mov eax, [rbx+8]; mov [rbx+8], eax; nop");
    TRAPPED(&r, V_DB, 0, 6); /* after the write; reads do not match */
    EXPECT_EQ(r.dr6, DR6_BASE | 4);
    EXPECT_EQ(r.flags & F_RF, 0);
    write_dr6(DR6_BASE);
    write_dr7(DR7(2, RW_RW, L4));
    r = kernel_regs();
    r.bx = (word)page;
    RUN(&r, "mov eax, [rbx+4]; mov eax, [rbx+12]; mov eax, [rbx+8]; nop");
    TRAPPED(&r, V_DB, 0, 9);
}

TEST(data_breakpoint_any_overlap)
{
    u64 *page = new_page();
    static const struct { int len, offset, size, hit; } list[] = {
        {L1, 3, 0, 1}, {L1, 4, 0, 0}, {L2, 2, 0, 1}, {L2, 3, 0, 1}, {L2, 1, 0, 0}, {L4, 7, 0, 0}, {L8, 7, 0, 1}, {L8, 8, 0, 0}};
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        int base = list[i].len == L1 ? 3 : list[i].len == L2 ? 2 : 0;
        write_dr0((word)page + (word)base);
        write_dr7(DR7(0, RW_WRITE, list[i].len));
        struct regs r = kernel_regs();
        r.bx = (word)page + (word)list[i].offset;
        RUN(&r, "mov byte ptr [rbx], 1; nop");
        if (r.vector != (list[i].hit ? V_DB : V_DONE))
            fail("entry %d: vector %ld", i, r.vector);
    }
    write_dr0((word)page + 16);
    write_dr7(DR7(0, RW_WRITE, L1));
    struct regs r = kernel_regs();
    r.bx = (word)page + 9;
    RUN(&r, "mov qword ptr [rbx], 1; nop"); /* bytes 9..16 */
    TRAPPED(&r, V_DB, 0, 7);
}

TEST(push_and_rmw_hit_breakpoints)
{
    struct regs r = kernel_regs();
    write_dr3(r.sp - 8);
    write_dr7(DR7(3, RW_WRITE, L8));
    RUN(&r, "push rax; nop");
    TRAPPED(&r, V_DB, 0, 1);
    EXPECT_EQ(r.dr6, DR6_BASE | 8);
    u64 *page = new_page();
    write_dr6(DR6_BASE);
    write_dr3((word)page);
    r = kernel_regs();
    r.bx = (word)page;
    RUN(&r, "lock inc qword ptr [rbx]; nop");
    TRAPPED(&r, V_DB, 0, 4);
    EXPECT_EQ(page[0], 1);
}

TEST(rep_string_stops_at_the_breakpoint)
{
    u64 *page = new_page();
    write_dr0((word)page + 24);
    write_dr7(DR7(0, RW_WRITE, L8));
    struct regs r = kernel_regs();
    r.di = (word)page, r.cx = 8, r.ax = 1;
    RUN(&r, "rep stosq; nop");
    EXPECT_EQ(r.vector, V_DB);
    EXPECT_EQ(page[3], 1);
    /* After the iteration that hit; real processors may finish a fast-string block first. */
    EXPECT(r.cx <= 4);
}

TEST(io_breakpoint)
{
    struct regs r = kernel_regs();
    write_dr0(0x80);
    write_dr7(DR7(0, RW_IO, L1));
    RUN(&r, "out 0x80, al; nop"); /* without CR4.DE: undefined, no I/O breakpoint */
    EXPECT(r.vector == V_DONE || r.vector == V_DB);
    write_cr4(read_cr4() | CR4_DE);
    write_dr6(DR6_BASE);
    write_dr7(DR7(0, RW_IO, L1));
    r = kernel_regs();
    RUN(&r, "out 0x80, al; nop");
    TRAPPED(&r, V_DB, 0, 2);
    EXPECT_EQ(r.dr6, DR6_BASE | 1);
    r = kernel_regs();
    RUN(&r, "out 0x81, al; nop");
    DONE(&r);
}

TEST(general_detect)
{
    write_dr7(0x400 | 1 << 13);
    struct regs r = kernel_regs();
    RUN(&r, "nop; mov rax, dr0");
    TRAPPED(&r, V_DB, 0, 1);
    EXPECT_EQ(r.dr6, DR6_BASE | 0x2000);
    write_dr7(0x400); /* the exception cleared GD */
    EXPECT_EQ(read_dr7(), 0x400);
}

TEST(dr4_dr5_alias_without_de)
{
    struct regs r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0x21, 0xe0; .byte 0x0f, 0x21, 0xeb"); /* mov rax, dr4; mov rbx, dr5 */
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, DR6_BASE);
        EXPECT_EQ(r.bx, 0x400);
    }
    write_cr4(read_cr4() | CR4_DE);
    r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0x21, 0xe0");
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(debug_register_values)
{
    struct regs r = kernel_regs();
    r.ax = 1ul << 32;
    RUN(&r, "mov dr7, rax");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.ax = 1ul << 32;
    RUN(&r, "mov dr6, rax");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.ax = 0;
    RUN(&r, "mov dr6, rax; mov rbx, dr6; mov dr7, rax; mov rcx, dr7");
    if (DONE(&r)) {
        EXPECT_EQ(r.bx & ~0x10800ul, DR6_BASE & ~0x10800u); /* fixed ones (bits 11 and 16: newer features) */
        EXPECT_EQ(r.cx, 0x400);
    }
    r = kernel_regs();
    r.ax = 0x123456789abcdef0;
    RUN(&r, "mov dr0, rax; mov rbx, dr0; .byte 0x66, 0x0f, 0x21, 0xc1"); /* 64 bits whatever the prefix */
    if (DONE(&r)) {
        EXPECT_EQ(r.bx, 0x123456789abcdef0);
        EXPECT_EQ(r.cx, 0x123456789abcdef0);
    }
    r = user_regs();
    RUN(&r, "mov rax, dr7");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(int1_does_not_touch_dr6)
{
    struct regs r = kernel_regs();
    RUN(&r, ".byte 0xf1");
    TRAPPED(&r, V_DB, 0, 1);
    EXPECT_EQ(r.dr6, DR6_BASE);
}

TEST(dr6_is_sticky_and_cumulative)
{
    u64 *page = new_page();
    write_dr6(DR6_BASE | 8);
    write_dr0((word)page);
    write_dr7(DR7(0, RW_WRITE, L8));
    struct regs r = kernel_regs();
    r.bx = (word)page;
    r.flags |= F_TF;
    RUN(&r, "mov [rbx], rax; nop");
    TRAPPED(&r, V_DB, 0, 3);
    EXPECT_EQ(r.dr6 & 0x4001, 0x4001); /* both causes in one exception */
    EXPECT(r.dr6 & 0x4000);
}

TEST(disabled_breakpoint_does_not_trap)
{
    u64 *page = new_page();
    write_dr0((word)page);
    write_dr7(0x400 | 1u << 16 | 3u << 18);
    struct regs r = kernel_regs();
    r.bx = (word)page;
    RUN(&r, "mov [rbx], eax; nop");
    DONE(&r);
}

TEST(breakpoint_under_mov_ss_is_held)
{
    u64 *page = new_page();
    page[0] = KDS;
    write_dr0((word)page);
    write_dr7(DR7(0, RW_RW, L4));
    struct regs r = kernel_regs();
    r.bx = (word)page;
    RUN(&r, "mov ss, [rbx]; nop; nop"); /* the data trap comes after the next instruction */
    TRAPPED(&r, V_DB, 0, 3);
}
