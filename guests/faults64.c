/* Exceptions in 64-bit mode: each class, its error code, CR2, saved RIP and flags, priority,
 * restartability, IST, stack faults, double and triple fault.
 * SDM vol. 3 chapter 6 (interrupt and exception handling), tables 6-1, 6-2, 6-4, 6-5; vol. 2. */
#include "guest.h"

#define NONCANON 0x0000800000000000ull

TEST(de_divide_by_zero)
{
    struct regs r = kernel_regs();
    r.ax = 1;
    RUN(&r, "div rcx");
    TRAPPED(&r, V_DE, 0, 0);
    EXPECT_EQ(r.ax, 1);
}

TEST(de_quotient_overflow)
{
    struct regs r = kernel_regs();
    r.dx = 5, r.cx = 5;
    RUN(&r, "nop; div rcx");
    TRAPPED(&r, V_DE, 0, 1);
    EXPECT_EQ(r.dx, 5);
    r = kernel_regs();
    r.ax = 1ull << 63, r.dx = ~0ull, r.cx = ~0ull; /* -2^63 / -1 */
    RUN(&r, "idiv rcx");
    TRAPPED(&r, V_DE, 0, 0);
    r = kernel_regs();
    r.ax = 0x8000, r.cx = 0xff;
    RUN(&r, "idiv cl");
    TRAPPED(&r, V_DE, 0, 0);
}

TEST(bp_is_a_trap)
{
    struct regs r = user_regs();
    set_gate(V_BP, KCS, STUB(V_BP), GATE_INT | 0x60, 1);
    RUN(&r, "nop; int3");
    TRAPPED(&r, V_BP, 0, 2);
    r = user_regs();
    RUN(&r, "nop; .byte 0xcd, 3");
    TRAPPED(&r, V_BP, 0, 3);
}

TEST(int_needs_gate_dpl)
{
    struct regs r = user_regs();
    RUN(&r, "nop; int3");
    TRAPPED(&r, V_GP, V_BP * 8 + 2, 1);
    r = user_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, 0x60 * 8 + 2, 0);
    r = user_regs();
    RUN(&r, "int 14");
    TRAPPED(&r, V_GP, 14 * 8 + 2, 0);
}

TEST(int1_ignores_gate_dpl)
{
    struct regs r = user_regs();
    RUN(&r, ".byte 0xf1");
    TRAPPED(&r, V_DB, 0, 1);
}

TEST(gate_not_present_and_beyond_limit)
{
    struct regs r = kernel_regs();
    idt[0x60].type = 0x0e;
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_NP, 0x60 * 8 + 2, 0);
    r = kernel_regs();
    idt[0x60].type = 0x85; /* a task gate does not exist in long mode */
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, 0x60 * 8 + 2, 0);
    r = kernel_regs();
    set_limits(sizeof gdt - 1, 0x90 * 16 - 2);
    RUN(&r, "int 0x8f"); /* its last byte is beyond */
    TRAPPED(&r, V_GP, 0x8f * 8 + 2, 0);
    r = kernel_regs();
    set_limits(sizeof gdt - 1, 0x90 * 16 - 1);
    RUN(&r, "int 0x8f");
    TRAPPED(&r, 0x8f, 0, 2);
}

TEST(gate_target_checks)
{
    struct regs r = kernel_regs();
    idt[0x60].selector = 0;
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, 0, 0);
    idt[0x60].selector = KDS; /* no code segment */
    r = kernel_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, KDS, 0);
    idt[0x60].selector = KCS32; /* no 64-bit code segment */
    r = kernel_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, KCS32, 0);
    idt[0x60].selector = TEST_SEL;
    set_gdt(TEST_SEL, descriptor(0, 0xfffff, 0x1b, G4K | LM)); /* not present */
    r = kernel_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_NP, TEST_SEL, 0);
    set_gdt(TEST_SEL, descriptor(0, 0xfffff, 0xbb, G4K | LM)); /* DPL 1 > CPL 0 */
    r = kernel_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, TEST_SEL, 0);
    idt[0x60].selector = 0xf000; /* beyond the GDT */
    r = kernel_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, 0xf000, 0);
}

TEST(ext_bit_of_faults_in_delivery)
{
    /* #UD's gate is not present: #NP with IDT and EXT set; of a software INT, EXT is clear. */
    struct regs r = kernel_regs();
    idt[V_UD].type = 0x0e;
    RUN(&r, "ud2");
    TRAPPED(&r, V_NP, V_UD * 8 + 3, 0);
    idt[V_UD].type = GATE_INT;
    idt[V_UD].selector = KDS;
    r = kernel_regs();
    RUN(&r, "ud2");
    TRAPPED(&r, V_GP, KDS + 1, 0);
    r = user_regs();
    set_gate(V_BP, KDS, STUB(V_BP), GATE_INT | 0x60, 1);
    RUN(&r, "int3");
    TRAPPED(&r, V_GP, KDS, 0);
}

TEST(of_br_bound_into_are_ud)
{
    struct regs r = kernel_regs();
    RUN(&r, ".byte 0xce");
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0x27");
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0x60");
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0xd4, 0x0a");
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0x06");
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0xea, 0, 0, 0, 0, 0, 0");
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(ud_forms)
{
    struct regs r = kernel_regs();
    RUN(&r, "ud2");
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0xb9, 0xc0"); /* UD1 */
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0xf0, 0x01, 0xc0"); /* LOCK on a register */
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0xf0, 0x8b, 0x00"); /* LOCK MOV */
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, "mov ax, cs; .byte 0x8e, 0xc8"); /* MOV CS */
    TRAPPED(&r, V_UD, 0, 3);
    r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0x20, 0xc8"); /* CR1 */
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0xaa"); /* RSM outside SMM */
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    RUN(&r, ".byte 0x8d, 0xc0"); /* LEA of a register */
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(instruction_longer_than_15_bytes)
{
    struct regs r = kernel_regs();
    RUN(&r, ".fill 14, 1, 0x66; nop"); /* 15 bytes */
    DONE(&r);
    r = kernel_regs();
    RUN(&r, ".fill 15, 1, 0x66; nop");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(too_long_but_page_fault_first)
{
    /* 15 prefixes up to the page's end: the fault of the 16th byte's fetch never comes first. */
    u8 *page = new_page();
    map_page(TEST_VA, (word)page, P_P | P_W | P_U, 1);
    memset(page + 4096 - 15, 0x66, 15);
    struct regs r = kernel_regs();
    run_at(&r, (void *)(TEST_VA + 4096 - 15));
    TRAPPED(&r, V_GP, 0, 0);
    memset(page + 4096 - 14, 0x66, 14);
    r = kernel_regs();
    run_at(&r, (void *)(TEST_VA + 4096 - 14));
    TRAPPED(&r, V_PF, PF_I * 1, 0);
    EXPECT_EQ(r.cr2, TEST_VA + 4096);
}

TEST(nm_by_ts_and_em)
{
    struct regs r = kernel_regs();
    write_cr0(read_cr0() | CR0_TS);
    RUN(&r, "fld1");
    TRAPPED(&r, V_NM, 0, 0);
    r = kernel_regs();
    RUN(&r, "wait"); /* MP and TS */
    TRAPPED(&r, V_NM, 0, 0);
    write_cr0(read_cr0() & ~CR0_MP);
    r = kernel_regs();
    RUN(&r, "wait");
    DONE(&r);
    write_cr0((read_cr0() & ~CR0_TS) | CR0_EM);
    r = kernel_regs();
    RUN(&r, "fnstcw [rsp]");
    TRAPPED(&r, V_NM, 0, 0);
    r = kernel_regs();
    RUN(&r, "emms"); /* MMX with EM: #UD */
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    write_cr4(read_cr4() | CR4_OSFXSR);
    RUN(&r, "xorps xmm0, xmm0");
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(sse_needs_osfxsr)
{
    struct regs r = kernel_regs();
    RUN(&r, "xorps xmm0, xmm0");
    TRAPPED(&r, V_UD, 0, 0);
    write_cr4(read_cr4() | CR4_OSFXSR);
    write_cr0(read_cr0() | CR0_TS);
    r = kernel_regs();
    RUN(&r, "xorps xmm0, xmm0");
    TRAPPED(&r, V_NM, 0, 0);
    write_cr0(read_cr0() & ~CR0_TS);
    r = kernel_regs();
    RUN(&r, "xorps xmm0, xmm0");
    DONE(&r);
    r = kernel_regs();
    r.sp -= 8;
    RUN(&r, "movaps xmm0, [rsp]"); /* misaligned */
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(gp_privileged_at_cpl3)
{
    static const struct { u8 code[4]; } list[] = {
        {{0xf4}},             /* hlt */
        {{0x0f, 0x06}},       /* clts */
        {{0x0f, 0x08}},       /* invd */
        {{0x0f, 0x09}},       /* wbinvd */
        {{0x0f, 0x20, 0xc0}}, /* mov rax, cr0 */
        {{0x0f, 0x22, 0xd8}}, /* mov cr3, rax */
        {{0x44, 0x0f, 0x20, 0xc0}}, /* mov rax, cr8 */
        {{0x0f, 0x21, 0xc0}}, /* mov rax, dr0 */
        {{0x0f, 0x23, 0xf8}}, /* mov dr7, rax */
        {{0x0f, 0x30}},       /* wrmsr */
        {{0x0f, 0x32}},       /* rdmsr */
        {{0x0f, 0x33}},       /* rdpmc with CR4.PCE clear */
        {{0x0f, 0x01, 0x10}}, /* lgdt [rax] */
        {{0x0f, 0x01, 0x18}}, /* lidt [rax] */
        {{0x0f, 0x01, 0x38}}, /* invlpg [rax] */
        {{0x0f, 0x01, 0xf0}}, /* lmsw ax */
        {{0x0f, 0x00, 0xd0}}, /* lldt ax */
        {{0x0f, 0x00, 0xd8}}, /* ltr ax */
        {{0x0f, 0x01, 0xf8}}, /* swapgs */
        {{0x0f, 0x07}},       /* sysret */
        {{0xfa}},             /* cli */
        {{0xfb}},             /* sti */
        {{0xec}},             /* in al, dx */
        {{0xef}},             /* out dx, eax */
        {{0x6c}},             /* insb */
        {{0x6f}},             /* outsd */
    };
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct regs r = user_regs();
        u8 *page = new_page();
        memcpy(page, list[i].code, 4);
        page[4] = 0xcd, page[5] = V_DONE;
        r.ax = r.di = r.si = (word)page + 512;
        run_at(&r, page);
        if (!TRAPPED(&r, V_GP, 0, 0))
            put("(entry %d)\n", i);
    }
}

TEST(noncanonical_data_is_gp_or_ss)
{
    struct regs r = kernel_regs();
    r.ax = NONCANON;
    RUN(&r, "mov rbx, [rax]");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.bp = NONCANON;
    RUN(&r, "mov [rbp], rbx");
    TRAPPED(&r, V_SS, 0, 0);
    r = kernel_regs();
    r.bp = NONCANON;
    RUN(&r, "mov [r12+rbp], rbx"); /* base is R12: DS */
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.bp = NONCANON;
    RUN(&r, ".byte 0x3e; mov rbx, [rbp]"); /* a DS prefix is ignored for the address, and still */
    EXPECT(r.vector == V_GP || r.vector == V_SS);
    r = kernel_regs();
    r.sp = NONCANON;
    RUN(&r, "push rax");
    EXPECT_EQ(r.vector, V_PF); /* the highest canonical byte below: no page */
    r = kernel_regs();
    r.sp = NONCANON + 8;
    RUN(&r, "push rax");
    TRAPPED(&r, V_SS, 0, 0);
    EXPECT_EQ(r.sp, NONCANON + 8);
    r = kernel_regs();
    r.sp = NONCANON;
    RUN(&r, "pop rax");
    TRAPPED(&r, V_SS, 0, 0);
    r = kernel_regs();
    r.sp = NONCANON;
    RUN(&r, "ret");
    TRAPPED(&r, V_SS, 0, 0);
}

TEST(noncanonical_straddle)
{
    /* The access begins in the last canonical page, which is mapped, and ends beyond it. */
    u8 *page = new_page();
    map_page(NONCANON - 4096, (word)page, P_P | P_W | P_U, 1);
    struct regs r = kernel_regs();
    r.ax = NONCANON - 4;
    RUN(&r, "mov rbx, [rax]");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.ax = NONCANON - 8;
    RUN(&r, "mov rbx, [rax]");
    DONE(&r);
    /* The other end: linear addresses wrap from the top to 0. */
    map_page(-4096ull, (word)page, P_P | P_W | P_U, 1);
    memset(page + 4092, 0x5a, 4);
    r = kernel_regs();
    r.ax = -4ll;
    RUN(&r, "mov ebx, [rax]");
    if (DONE(&r))
        EXPECT_EQ(r.bx, 0x5a5a5a5a);
}

TEST(noncanonical_branch_target)
{
    struct regs r = kernel_regs();
    r.ax = NONCANON;
    RUN(&r, "jmp rax"); /* a fault of the jump, RIP at it */
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.ax = NONCANON;
    word sp = r.sp;
    RUN(&r, "call rax");
    TRAPPED(&r, V_GP, 0, 0);
    EXPECT_EQ(r.sp, sp);
    r = kernel_regs();
    r.ax = NONCANON;
    RUN(&r, "push rax; ret");
    TRAPPED(&r, V_GP, 0, 1);
    EXPECT_EQ(r.sp, sp - 8);
    /* Falling off the end of the canonical half: the fault is at the next fetch. */
    u8 *page = new_page();
    map_page(NONCANON - 4096, (word)page, P_P | P_W | P_U, 1);
    page[4095] = 0x90;
    r = kernel_regs();
    run_at(&r, (void *)(NONCANON - 1));
    EXPECT_EQ(r.vector, V_GP);
    EXPECT_EQ(r.ip, NONCANON);
}

TEST(page_fault_restarts)
{
    struct regs r = kernel_regs();
    r.ax = TEST_VA + 0x1234;
    r.bx = 7;
    RUN(&r, "nop; add [rax], rbx");
    TRAPPED(&r, V_PF, PF_W, 1);
    EXPECT_EQ(r.cr2, TEST_VA + 0x1234);
    EXPECT_EQ(r.flags & F_RF, F_RF); /* faults push RF set */
    u64 *page = new_page();
    map_page(TEST_VA + 0x1000, (word)page, P_P | P_W, 1);
    word cs = r.cs;
    (void)cs;
    const void *again = (const void *)r.ip;
    run_at(&r, again);
    DONE(&r);
    EXPECT_EQ(page[0x234 / 8] >> 32, 7);
}

TEST(push_and_call_leave_rsp_at_fault)
{
    struct regs r = kernel_regs();
    r.sp = TEST_VA + 0x1000;
    RUN(&r, "push rax");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.sp, TEST_VA + 0x1000);
    EXPECT_EQ(r.cr2, TEST_VA + 0xff8);
    r = kernel_regs();
    r.sp = TEST_VA + 0x1000;
    RUN(&r, "call [rsp-0x100]"); /* the read faults first */
    TRAPPED(&r, V_PF, 0, 0);
    EXPECT_EQ(r.cr2, TEST_VA + 0xf00);
    r = kernel_regs();
    r.sp = TEST_VA + 0x1000;
    RUN(&r, "enter 16, 0");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.sp, TEST_VA + 0x1000);
    r = kernel_regs();
    r.bp = TEST_VA;
    word sp = r.sp;
    RUN(&r, "leave");
    TRAPPED(&r, V_PF, 0, 0);
    EXPECT_EQ(r.sp, sp);
    EXPECT_EQ(r.bp, TEST_VA);
}

TEST(pop_to_memory_uses_new_rsp)
{
    struct regs r = kernel_regs();
    u64 *stack = (u64 *)r.sp;
    stack[0] = 0x1122334455667788, stack[1] = 0;
    RUN(&r, "pop qword ptr [rsp]");
    DONE(&r);
    EXPECT_EQ(stack[1], 0x1122334455667788);
    r = kernel_regs();
    r.ax = TEST_VA;
    word sp = r.sp;
    RUN(&r, "pop qword ptr [rax]");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.sp, sp);
}

TEST(ac_alignment_check)
{
    struct regs r = user_regs();
    write_cr0(read_cr0() | CR0_AM);
    r.flags |= F_AC;
    r.ax = (word)new_page() + 1;
    RUN(&r, "mov ebx, [rax]");
    TRAPPED(&r, V_AC, 0, 0);
    r.flags |= F_AC;
    RUN(&r, "mov bl, [rax]");
    DONE(&r);
    r = user_regs(); /* AC clear: no check */
    r.ax = (word)new_page() + 1;
    RUN(&r, "mov ebx, [rax]");
    DONE(&r);
    r = kernel_regs(); /* CPL 0: no check */
    r.flags |= F_AC;
    r.ax = (word)new_page() + 1;
    RUN(&r, "mov ebx, [rax]");
    DONE(&r);
    write_cr0(read_cr0() & ~CR0_AM);
    r = user_regs();
    r.flags |= F_AC;
    r.ax = (word)new_page() + 1;
    RUN(&r, "mov ebx, [rax]");
    DONE(&r);
}

TEST(ac_before_page_fault_of_second_page)
{
    write_cr0(read_cr0() | CR0_AM);
    struct regs r = user_regs();
    map_page(TEST_VA, (word)new_page(), P_P | P_W | P_U, 1);
    r.flags |= F_AC;
    r.ax = TEST_VA + 4094;
    RUN(&r, "mov ebx, [rax]");
    EXPECT(r.vector == V_AC || r.vector == V_PF);
    r = user_regs();
    r.ax = TEST_VA + 4094;
    RUN(&r, "mov ebx, [rax]");
    TRAPPED(&r, V_PF, PF_U, 0);
    EXPECT_EQ(r.cr2, TEST_VA + 4096);
}

TEST(straddling_store_is_all_or_nothing)
{
    u64 *page = new_page();
    map_page(TEST_VA, (word)page, P_P | P_W | P_U, 1);
    struct regs r = kernel_regs();
    r.ax = TEST_VA + 4092;
    r.bx = ~0ull;
    RUN(&r, "mov [rax], rbx");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.cr2, TEST_VA + 4096);
    EXPECT_EQ(page[511], 0);
}

TEST(interrupt_frame_is_aligned_and_complete)
{
    /* Without IST and without a change of privilege: the current stack, aligned down to 16. */
    struct regs r = kernel_regs();
    set_gate(0x60, KCS, STUB(0x60), GATE_INT, 0);
    r.sp -= 3;
    word sp = r.sp;
    r.flags = 2 | F_CF | F_ZF | F_DF;
    RUN(&r, "int 0x60");
    TRAPPED(&r, 0x60, 0, 2);
    EXPECT_EQ(r.sp, sp);
    EXPECT_EQ(r.ss, KDS);
    EXPECT_EQ(r.cs, KCS);
    EXPECT_EQ(r.flags, 2 | F_CF | F_ZF | F_DF);
    u64 *frame = (u64 *)((sp & ~15ull) - 40);
    EXPECT_EQ(frame[0], r.ip);
    EXPECT_EQ(frame[3], sp);
}

TEST(cpl_change_loads_rsp0_and_null_ss)
{
    extern char handler_probe[];
    static u64 seen[4];
    asm volatile(".pushsection .snip,\"ax\"\nhandler_probe: mov %%ss, %%eax\n mov %%rax, %0\n mov %%rsp, %1\n"
                 "pushf\n pop %2\n jmp %P3\n.popsection"
                 : : "m"(seen[0]), "m"(seen[1]), "m"(seen[2]), "i"(trap_stubs + 16 * 0x61));
    set_gate(0x60, KCS, handler_probe, GATE_TRAP | 0x60, 0);
    struct regs r = user_regs();
    RUN(&r, "int 0x60");
    EXPECT_EQ(r.vector, 0x61);
    EXPECT_EQ(seen[0], 0); /* NULL selector with RPL = new CPL */
    EXPECT_EQ(seen[1], tss.rsp[0] - 40);
    EXPECT_EQ(r.ss, UDS);
    EXPECT_EQ(r.cs, UCS64);
}

TEST(trap_gate_keeps_if)
{
    extern char handler_flags[];
    static u64 flags;
    asm volatile(".pushsection .snip,\"ax\"\nhandler_flags: pushf\n pop %0\n cli\n jmp %P1\n.popsection"
                 : : "m"(flags), "i"(trap_stubs + 16 * 0x61));
    struct regs r = kernel_regs();
    set_gate(0x60, KCS, handler_flags, GATE_TRAP, 1);
    r.flags = 2 | F_IF | F_NT;
    RUN(&r, "int 0x60");
    EXPECT_EQ(r.vector, 0x61);
    EXPECT_EQ(flags & (F_IF | F_NT | F_TF), F_IF);
    set_gate(0x60, KCS, handler_flags, GATE_INT, 1);
    r = kernel_regs();
    r.flags = 2 | F_IF;
    RUN(&r, "int 0x60");
    EXPECT_EQ(flags & F_IF, 0);
    EXPECT_EQ(r.flags & F_IF, F_IF);
}

TEST(ist_switches_stacks_even_at_cpl0)
{
    u8 *stack = new_page();
    tss.ist[3] = (word)stack + 4096 - 8; /* is aligned down */
    set_gate(0x60, KCS, STUB(0x60), GATE_INT, 4);
    struct regs r = kernel_regs();
    word sp = r.sp;
    RUN(&r, "int 0x60");
    TRAPPED(&r, 0x60, 0, 2);
    EXPECT_EQ(r.sp, sp);
    u64 *frame = (u64 *)(stack + 4096 - 16 - 40);
    EXPECT_EQ(frame[3], sp);
    EXPECT_EQ(frame[4], KDS);
    EXPECT_EQ(frame[1], KCS);
}

TEST(noncanonical_rsp0_is_ss)
{
    /* #SS(0) while the stack is switched; its own gate uses IST 1. EXT is clear for INT n, set for a fault. */
    set_gate(0x60, KCS, STUB(0x60), GATE_INT | 0x60, 0);
    tss.rsp[0] = NONCANON + 0x1000;
    struct regs r = user_regs();
    RUN(&r, "int 0x60");
    EXPECT_EQ(r.vector, V_SS);
    EXPECT_EQ(r.ip - r.start, 0);
    EXPECT_EQ(r.error & ~1ull, 0);
    EXPECT_EQ(r.cs, UCS64);
}

TEST(page_fault_while_pushing_is_pf)
{
    /* A benign exception's delivery that page-faults: #PF, with CR2 of the stack. */
    set_gate(V_BP, KCS, STUB(V_BP), GATE_INT | 0x60, 0);
    tss.rsp[0] = TEST_VA + 0x2000;
    struct regs r = user_regs();
    RUN(&r, "int3");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT(r.cr2 >= TEST_VA + 0x1000 && r.cr2 < TEST_VA + 0x2000);
}

TEST(double_fault_contributory)
{
    /* #GP whose gate is not present: #NP during #GP, both contributory: #DF(0). */
    idt[V_GP].type = 0x0e;
    struct regs r = user_regs();
    RUN(&r, "hlt");
    TRAPPED(&r, V_DF, 0, 0);
}

TEST(double_fault_pf_then_contributory)
{
    idt[V_PF].type = 0x0e;
    struct regs r = kernel_regs();
    r.ax = TEST_VA;
    RUN(&r, "mov rbx, [rax]");
    TRAPPED(&r, V_DF, 0, 0);
    EXPECT_EQ(r.cr2, TEST_VA);
}

TEST(double_fault_pf_then_pf)
{
    set_gate(V_PF, KCS, STUB(V_PF), GATE_INT, 0);
    tss.rsp[0] = TEST_VA + 0x5000;
    struct regs r = user_regs();
    r.ax = TEST_VA;
    RUN(&r, "mov rbx, [rax]");
    TRAPPED(&r, V_DF, 0, 0);
    EXPECT_EQ(r.cr2, TEST_VA + 0x4ff8);
}

TEST(contributory_then_pf_is_pf)
{
    /* #GP (contributory) whose delivery page-faults is serially handled: #PF (table 6-5). */
    set_gate(V_GP, KCS, STUB(V_GP), GATE_INT, 0);
    tss.rsp[0] = TEST_VA + 0x5000;
    struct regs r = user_regs();
    RUN(&r, "hlt");
    TRAPPED(&r, V_PF, PF_W, 0);
}

TEST(benign_then_contributory_is_serial)
{
    idt[V_UD].type = 0x0e;
    struct regs r = kernel_regs();
    RUN(&r, "ud2");
    TRAPPED(&r, V_NP, V_UD * 8 + 3, 0);
}

TEST(triple_fault)
{
    idt[V_GP].type = 0x0e;
    idt[V_DF].type = 0x0e;
    dying();
    struct regs r = user_regs();
    RUN(&r, "hlt");
    fail("came back with vector %lu", r.vector);
}

TEST(triple_fault_empty_idt)
{
    dying();
    set_limits(sizeof gdt - 1, 0);
    asm volatile("int3");
    fail("came back");
}

TEST(priority_segment_before_page)
{
    /* A non-canonical address is found before any page fault; a code fetch fault before #UD. */
    struct regs r = kernel_regs();
    run_at(&r, (void *)TEST_VA);
    TRAPPED(&r, V_PF, PF_I, 0);
    EXPECT_EQ(r.cr2, TEST_VA);
    /* #UD of the opcode before the operand's page fault */
    r = kernel_regs();
    r.ax = TEST_VA;
    RUN(&r, ".byte 0xf0, 0x89, 0x00");
    TRAPPED(&r, V_UD, 0, 0);
    /* #GP of CPL before the operand's page fault */
    r = user_regs();
    r.ax = TEST_VA;
    RUN(&r, "lgdt [rax]");
    TRAPPED(&r, V_GP, 0, 0);
    /* #NM before the operand's page fault */
    write_cr0(read_cr0() | CR0_TS);
    r = kernel_regs();
    r.ax = TEST_VA;
    RUN(&r, "fld dword ptr [rax]");
    TRAPPED(&r, V_NM, 0, 0);
}

TEST(instruction_fetch_straddle_reports_second_page)
{
    u8 *page = new_page();
    map_page(TEST_VA, (word)page, P_P | P_W | P_U, 1);
    page[4095] = 0xb8; /* mov eax, imm32 */
    struct regs r = kernel_regs();
    run_at(&r, (void *)(TEST_VA + 4095));
    TRAPPED(&r, V_PF, PF_I, 0);
    EXPECT_EQ(r.cr2, TEST_VA + 4096);
    u8 *next = new_page();
    map_page(TEST_VA + 4096, (word)next, P_P | P_W | P_U, 1);
    memcpy(next, "\x44\x33\x22\x11\xcd\x81", 6);
    r = kernel_regs();
    run_at(&r, (void *)(TEST_VA + 4095));
    DONE(&r);
    EXPECT_EQ(r.ax, 0x11223344);
}

TEST(xchg_and_cmpxchg_need_write)
{
    u64 *page = new_page();
    map_page(TEST_VA, (word)page, P_P | P_U, 1);
    struct regs r = kernel_regs();
    page[0] = 5;
    r.bx = TEST_VA;
    r.ax = 4; /* no match: still a write access */
    RUN(&r, "cmpxchg [rbx], rcx");
    TRAPPED(&r, V_PF, PF_P | PF_W, 0);
    EXPECT_EQ(r.ax, 4);
    r = kernel_regs();
    r.bx = TEST_VA;
    RUN(&r, "xchg [rbx], rcx");
    TRAPPED(&r, V_PF, PF_P | PF_W, 0);
    EXPECT_EQ(r.cx, 0);
    r = kernel_regs();
    r.bx = TEST_VA;
    RUN(&r, "cmpxchg16b [rbx]");
    TRAPPED(&r, V_PF, PF_P | PF_W, 0);
    r = kernel_regs();
    r.bx = TEST_VA + 8;
    RUN(&r, "cmpxchg16b [rbx]"); /* misaligned */
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.bx = TEST_VA;
    r.cx = 2;
    RUN(&r, "shl qword ptr [rbx], 0"); /* a count of 0 */
    EXPECT(r.vector == V_PF || r.vector == V_DONE);
    r = kernel_regs();
    r.bx = TEST_VA;
    RUN(&r, "test qword ptr [rbx], 1; bt qword ptr [rbx], 3; cmp qword ptr [rbx], 1");
    DONE(&r); /* reads only */
}

TEST(bt_with_memory_bit_offset)
{
    u64 *page = new_page();
    struct regs r = kernel_regs();
    r.bx = (word)page + 2048;
    r.cx = -64ll * 8 + 3;
    RUN(&r, "bts [rbx], rcx");
    DONE(&r);
    EXPECT_EQ(page[256 - 8], 8);
    r = kernel_regs();
    r.bx = TEST_VA;
    r.cx = 0x8000 * 8;
    RUN(&r, "btc [rbx], rcx");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.cr2, TEST_VA + 0x8000);
}
