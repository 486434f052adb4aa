/* String instructions with REP: overlap, direction, address size, faults in the middle with residual
 * counts, page straddles, port strings, self- and cross-page; and self-modifying code of every kind.
 * SDM vol. 2 REP, MOVS, STOS, CMPS, SCAS, LODS, INS, OUTS; vol. 3 section 9.1.3 (self-modifying code). */
#include "guest.h"

#define A TEST_VA
#define ALL (P_P | P_W | P_U)

/* Two mapped pages with a hole behind them. */
static u8 *two_pages(void)
{
    u8 *one = new_page(), *two = new_page();
    map_page(A, (word)one, ALL, 1);
    map_page(A + 0x1000, (word)two, ALL, 1);
    return (u8 *)A;
}

TEST(movs_forward_overlap_replicates)
{
    u8 *p = two_pages();
    p[0] = 1, p[1] = 2, p[2] = 3;
    struct regs r = kernel_regs();
    r.si = A, r.di = A + 3, r.cx = 4000;
    RUN(&r, "rep movsb");
    DONE(&r);
    u32 wrong = 0;
    for (u32 i = 0; i < 4003; i++)
        wrong += p[i] != i % 3 + 1;
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(r.si, A + 4000);
    EXPECT_EQ(r.di, A + 4003);
    EXPECT_EQ(r.cx, 0);
}

TEST(movsq_overlap_by_less_than_its_size)
{
    u8 *p = two_pages();
    for (u32 i = 0; i < 16; i++)
        p[i] = (u8)i;
    struct regs r = kernel_regs();
    r.si = A, r.di = A + 4, r.cx = 100;
    RUN(&r, "rep movsq");
    DONE(&r);
    /* byte i of the result: model it element by element */
    u8 model[820];
    for (u32 i = 0; i < 820; i++)
        model[i] = i < 16 ? (u8)i : 0;
    for (u32 e = 0; e < 100; e++) {
        u8 t[8];
        for (u32 k = 0; k < 8; k++)
            t[k] = model[e * 8 + k];
        for (u32 k = 0; k < 8; k++)
            model[e * 8 + 4 + k] = t[k];
    }
    EXPECT_EQ(memcmp(model, p, 804), 0);
}

TEST(movs_backward)
{
    u8 *p = two_pages();
    for (u32 i = 0; i < 256; i++)
        p[i] = (u8)i;
    struct regs r = kernel_regs();
    r.flags |= F_DF;
    r.si = A + 255, r.di = A + 259, r.cx = 256; /* a memmove upwards */
    RUN(&r, "rep movsb");
    DONE(&r);
    u32 wrong = 0;
    for (u32 i = 0; i < 256; i++)
        wrong += p[i + 4] != (u8)i;
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(r.si, A - 1);
    EXPECT_EQ(r.di, A + 3);
}

TEST(fault_in_the_middle_leaves_residue)
{
    u8 *p = two_pages();
    struct regs r = kernel_regs();
    r.ax = 0x5a, r.di = A + 0x1ff0, r.cx = 100;
    RUN(&r, "nop; rep stosb");
    TRAPPED(&r, V_PF, PF_W, 1);
    EXPECT_EQ(r.cr2, A + 0x2000);
    EXPECT_EQ(r.cx, 84);
    EXPECT_EQ(r.di, A + 0x2000);
    EXPECT_EQ(p[0x1fff], 0x5a);
    /* resumed after the page is there */
    u8 *third = new_page();
    map_page(A + 0x2000, (word)third, ALL, 1);
    run_at(&r, (void *)r.ip);
    if (DONE(&r)) {
        EXPECT_EQ(r.cx, 0);
        EXPECT_EQ(third[83] == 0x5a && third[84] == 0, 1);
    }
}

TEST(straddling_element_faults_whole)
{
    u8 *p = two_pages();
    struct regs r = kernel_regs();
    r.ax = ~0ul, r.di = A + 0x1ff4, r.cx = 4;
    RUN(&r, "rep stosq");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.cx, 3);
    EXPECT_EQ(r.di, A + 0x1ffc);
    EXPECT_EQ(r.cr2, A + 0x2000);
    EXPECT_EQ(p[0x1ffc], 0);
    EXPECT_EQ(p[0x1ffb], 0xff);
}

TEST(movs_source_and_destination_faults)
{
    two_pages();
    struct regs r = kernel_regs();
    r.si = A + 0x1ffe, r.di = A, r.cx = 10;
    RUN(&r, "rep movsb");
    TRAPPED(&r, V_PF, 0, 0);
    EXPECT_EQ(r.cr2, A + 0x2000);
    EXPECT_EQ(r.cx, 8);
    EXPECT_EQ(r.di, A + 2);
    r = kernel_regs();
    r.si = A, r.di = A + 0x1ffe, r.cx = 10;
    RUN(&r, "rep movsb");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.cx, 8);
    EXPECT_EQ(r.si, A + 2);
    r = kernel_regs(); /* backwards over the lower edge */
    r.flags |= F_DF;
    r.si = A + 0x1000, r.di = A + 1, r.cx = 10;
    RUN(&r, "rep movsb");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.cr2, A - 1);
    EXPECT_EQ(r.cx, 8);
    r = kernel_regs();
    r.si = 0x0000800000000000, r.di = A, r.cx = 1;
    RUN(&r, "rep movsb");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(zero_count_touches_nothing)
{
    struct regs r = kernel_regs();
    r.di = A + 0x5000, r.si = 0x0000800000000000;
    RUN(&r, "rep movsq; rep stosb; repe cmpsb; repne scasb; rep lodsb");
    DONE(&r);
    EXPECT_EQ(r.di, A + 0x5000);
}

TEST(cmps_and_scas_stop)
{
    u8 *p = two_pages();
    memset(p, 7, 0x2000);
    p[0x1234] = 8;
    struct regs r = kernel_regs();
    r.di = A, r.cx = 0x2000, r.ax = 7;
    RUN(&r, "repe scasb");
    if (DONE(&r)) {
        EXPECT_EQ(r.di, A + 0x1235);
        EXPECT_EQ(r.cx, 0x2000 - 0x1235);
        EXPECT_EQ(r.flags & (F_ZF | F_CF | F_SF), F_CF | F_SF); /* 7 - 8 */
    }
    r = kernel_regs();
    r.di = A, r.cx = 0x2000, r.ax = 8;
    RUN(&r, "repne scasb");
    if (DONE(&r)) {
        EXPECT_EQ(r.di, A + 0x1235);
        EXPECT_EQ(r.flags & F_ZF, F_ZF);
    }
    r = kernel_regs();
    r.si = A, r.di = A + 0x1000, r.cx = 0x1000;
    RUN(&r, "repe cmpsb");
    if (DONE(&r)) {
        EXPECT_EQ(r.si, A + 0x235);
        EXPECT_EQ(r.cx, 0x1000 - 0x235);
        EXPECT_EQ(r.flags & (F_ZF | F_CF), F_CF);
    }
    r = kernel_regs(); /* a fault in the middle keeps the flags of the iterations before? It restores none. */
    r.di = A + 0x1ff8, r.cx = 100, r.ax = 7;
    RUN(&r, "repe scasb");
    TRAPPED(&r, V_PF, 0, 0);
    EXPECT_EQ(r.cx, 92);
    EXPECT_EQ(r.di, A + 0x2000);
}

TEST(address_size_32)
{
    u8 *low = (u8 *)0x800000;
    asm("" : "+r"(low));
    memset(low, 0, 64);
    struct regs r = kernel_regs();
    r.di = 0xabcdef0000800000, r.cx = 0x1234567800000008, r.ax = 0x11;
    RUN(&r, ".byte 0x67; rep stosb");
    if (DONE(&r)) {
        EXPECT_EQ(low[7] == 0x11 && low[8] == 0, 1);
        EXPECT_EQ(r.di, 0x800008); /* 32-bit results are zero-extended */
        EXPECT_EQ(r.cx, 0);
    }
    r = kernel_regs(); /* JECXZ and LOOP by ECX */
    r.cx = 0x1234567800000000;
    RUN(&r, "mov eax, 1; .byte 0x67, 0xe3, 2; mov al, 2; nop"); /* jecxz over the MOV */
    if (DONE(&r))
        EXPECT_EQ(r.ax, 1);
}

TEST(wrap_of_the_address)
{
    map_page(-4096ull, (word)new_page(), ALL, 1);
    u8 *zero = (u8 *)0;
    asm("" : "+r"(zero));
    struct regs r = kernel_regs();
    r.di = -4ul, r.cx = 8, r.ax = 0;
    u8 saved[8];
    memcpy(saved, zero, 8);
    RUN(&r, "rep stosb");
    memcpy(zero, saved, 8);
    if (DONE(&r))
        EXPECT_EQ(r.di, 4);
}

TEST(segment_override_of_the_source)
{
    u8 *p = two_pages();
    p[16] = 0x77;
    wrmsr(0xc0000101, A);
    struct regs r = kernel_regs();
    r.si = 16;
    RUN(&r, "lods byte ptr gs:[rsi]");
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0xff, 0x77);
    wrmsr(0xc0000101, 0);
}

TEST(port_strings)
{
    u8 *p = two_pages();
    struct regs r = kernel_regs();
    r.dx = 0x3fd, r.di = A + 0x1ffd, r.cx = 5;
    RUN(&r, "rep insb");
    TRAPPED(&r, V_PF, PF_W, 0);
    EXPECT_EQ(r.cx, 2);
    EXPECT_EQ(p[0x1fff] & 0x20, 0x20);
    r = kernel_regs();
    r.dx = 0x80, r.si = A + 0x1ffd, r.cx = 5;
    RUN(&r, "rep outsb");
    TRAPPED(&r, V_PF, 0, 0);
    EXPECT_EQ(r.cx, 2);
    EXPECT_EQ(r.si, A + 0x2000);
}

TEST(read_only_destination)
{
    map_page(A, (word)new_page(), ALL, 1);
    map_page(A + 0x1000, (word)new_page(), P_P | P_U, 1);
    struct regs r = kernel_regs();
    r.di = A + 0xff8, r.cx = 16;
    RUN(&r, "rep stosb");
    TRAPPED(&r, V_PF, PF_P | PF_W, 0);
    EXPECT_EQ(r.cx, 8);
}

/* ---- self-modifying code ---- */

TEST(next_instruction_rewritten)
{
    /* The store changes the very next instruction: it must run changed. */
    struct regs r = kernel_regs();
    RUN(&r, "lea rbx, [rip+1f+1]; mov byte ptr [rbx], 9; 1: mov al, 5; nop");
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0xff, 9);
}

TEST(later_in_the_same_block)
{
    struct regs r = kernel_regs();
    RUN(&r, "lea rbx, [rip+1f+1]; mov byte ptr [rbx], 0x21; add ecx, 3; xor edx, edx; 1: mov al, 5; add ecx, 4");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax & 0xff, 0x21);
        EXPECT_EQ(r.cx, 7);
    }
}

TEST(loop_that_rewrites_itself)
{
    struct regs r = kernel_regs();
    r.cx = 100;
    RUN(&r, "lea rbx, [rip+1f+1]; xor eax, eax; 2: mov byte ptr [rbx], cl; 1: mov dl, 0; movzx edx, dl; add eax, edx; dec ecx; jnz 2b");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 5050);
}

TEST(instruction_lengths_change)
{
    /* A NOP becomes a jump over what follows. */
    struct regs r = kernel_regs();
    RUN(&r, "lea rbx, [rip+1f]; mov eax, 1; mov word ptr [rbx], 0x02eb; 1: nop; nop; mov al, 2; nop");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 1);
}

TEST(code_written_through_an_alias)
{
    u8 *page = new_page();
    map_page(A, (word)page, ALL, 1);
    map_page(A + 0x1000, (word)page, ALL, 1);
    memcpy(page, "\xb8\1\0\0\0\xcd\x81", 7);
    struct regs r = kernel_regs();
    for (u32 i = 1; i < 50; i++) {
        *(volatile u8 *)(A + 0x1001) = (u8)i;
        r = kernel_regs();
        run_at(&r, (void *)A);
        EXPECT_EQ(r.ax, i);
    }
    /* and from within the running code itself */
    memcpy(page, "\xc6\x03\x2a\xb8\1\0\0\0\xcd\x81", 10); /* mov byte [rbx], 42; mov eax, 1 */
    r = kernel_regs();
    r.bx = A + 0x1004;
    run_at(&r, (void *)A);
    EXPECT_EQ(r.ax, 42);
}

TEST(code_rewritten_by_rep_movs)
{
    u8 *page = new_page();
    map_page(A, (word)page, ALL, 1);
    memcpy(page, "\xb8\1\0\0\0\xcd\x81", 7);
    struct regs r = kernel_regs();
    run_at(&r, (void *)A);
    EXPECT_EQ(r.ax, 1);
    static const u8 fresh[] = "\xb8\2\0\0\0\xcd\x81";
    r = kernel_regs();
    r.si = (word)fresh, r.di = A, r.cx = 7, r.bx = A;
    RUN(&r, "rep movsb; jmp rbx");
    EXPECT_EQ(r.ax, 2);
}

TEST(remapped_code_page)
{
    u8 *one = new_page(), *two = new_page();
    memcpy(one, "\xb8\1\0\0\0\xcd\x81", 7);
    memcpy(two, "\xb8\2\0\0\0\xcd\x81", 7);
    u64 *e = map_page(A, (word)one, ALL, 1);
    struct regs r = kernel_regs();
    run_at(&r, (void *)A);
    EXPECT_EQ(r.ax, 1);
    *e = (word)two | ALL;
    invlpg(A);
    r = kernel_regs();
    run_at(&r, (void *)A);
    EXPECT_EQ(r.ax, 2);
    *e = (word)one | ALL;
    write_cr3(read_cr3());
    r = kernel_regs();
    run_at(&r, (void *)A);
    EXPECT_EQ(r.ax, 1);
}

TEST(code_over_a_page_edge_rewritten)
{
    u8 *one = new_page(), *two = new_page();
    map_page(A, (word)one, ALL, 1);
    map_page(A + 0x1000, (word)two, ALL, 1);
    for (u32 i = 1; i < 20; i++) { /* the immediate lies in the second page */
        one[4095] = 0xb8;
        memcpy(two, "\0\0\0\0\xcd\x81", 6);
        two[0] = (u8)i;
        struct regs r = kernel_regs();
        run_at(&r, (void *)(A + 4095));
        EXPECT_EQ(r.ax, i);
    }
}

TEST(same_bytes_in_another_mode)
{
    /* 48 ff c0 is INC RAX in 64-bit mode, DEC EAX; INC EAX in 32-bit mode: one page, two meanings. */
    u8 *low = (u8 *)0x900000;
    asm("" : "+r"(low));
    memcpy(low, "\x48\xff\xc0\xcd\x81", 5);
    for (int i = 0; i < 3; i++) {
        struct regs r = kernel_regs();
        r.ax = 10;
        run_at(&r, low);
        EXPECT_EQ(r.ax, 11);
        r = user_regs();
        r.cs = UCS32;
        r.ax = 10;
        run_at(&r, low);
        EXPECT_EQ(r.ax, 10);
    }
}

TEST(fault_inside_rewritten_code)
{
    /* A store that turns the next instruction into UD2. */
    struct regs r = kernel_regs();
    RUN(&r, "lea rbx, [rip+1f]; mov word ptr [rbx], 0x0b0f; 1: nop; nop");
    EXPECT_EQ(r.vector, V_UD);
    EXPECT_EQ(r.ip - r.start, 12);
}

TEST(user_stack_code)
{
    struct regs r = user_regs(); /* code that a program writes onto its stack and calls */
    RUN(&r, "mov rax, 0xc30000002ab8; push rax; call rsp; add rsp, 8");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 42);
}
