/* Segmentation in long and compatibility mode: far transfers, 64-bit call gates, IRET in all its
 * directions, segment loads, limits in compatibility mode.
 * SDM vol. 3 sections 3.2.4, 5.8.3.1 (IA-32e call gates), 7.14; vol. 2 JMP, CALL, RET, IRET. */
#include "guest.h"

#define S(n) (TEST_SEL + 16 * (n))
static struct { u64 offset; u16 selector; } __attribute__((packed)) pointer;
static struct { u32 offset; u16 selector; } __attribute__((packed)) pointer32;

static struct regs far(struct regs r, int call, u16 selector, word offset)
{
    pointer32.offset = (u32)offset;
    pointer32.selector = selector;
    r.bx = (word)&pointer32;
    if (call)
        RUN(&r, ".byte 0xff, 0x1b"); /* call m16:32 */
    else
        RUN(&r, ".byte 0xff, 0x2b"); /* jmp m16:32 */
    return r;
}

TEST(far_jump_between_modes)
{
    struct regs r = far(kernel_regs(), 0, KCS32, (word)CODE32("mov eax, cs; dec eax; inc eax"));
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, KCS32);
        EXPECT_EQ(r.ax, KCS32);
    }
    r = far(kernel_regs(), 0, KCS, (word)CODE("mov rax, 0x123456789abc"));
    if (DONE(&r))
        EXPECT_EQ(r.ax, 0x123456789abc);
    pointer.offset = (word)CODE("mov eax, 7");
    pointer.selector = KCS;
    r = kernel_regs();
    r.bx = (word)&pointer;
    RUN(&r, ".byte 0x48, 0xff, 0x2b"); /* m16:64, on Intel; AMD reads m16:32 */
    if (is_intel() && DONE(&r))
        EXPECT_EQ(r.ax, 7);
}

TEST(far_jump_checks)
{
    word ok = (word)CODE("nop");
    struct regs r = far(kernel_regs(), 0, 0, ok);
    TRAPPED(&r, V_GP, 0, 0);
    r = far(kernel_regs(), 0, KDS, ok);
    TRAPPED(&r, V_GP, KDS, 0);
    r = far(user_regs(), 0, KCS, ok);
    TRAPPED(&r, V_GP, KCS, 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x9b, G4K | LM | DB)); /* L and D */
    r = far(kernel_regs(), 0, S(0), ok);
    TRAPPED(&r, V_GP, S(0), 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x1b, G4K | LM));
    r = far(kernel_regs(), 0, S(0), ok);
    TRAPPED(&r, V_NP, S(0), 0);
    r = far(kernel_regs(), 0, TSS_SEL, ok); /* no task switches in long mode */
    TRAPPED(&r, V_GP, TSS_SEL, 0);
    set_gdt16(S(0), 0, 0, 0x85); /* a task gate */
    r = far(kernel_regs(), 0, S(0), ok);
    TRAPPED(&r, V_GP, S(0), 0);
}

TEST(call_gate_to_same_level)
{
    call_gate(S(0), KCS, (word)CODE("pop rcx; pop rdx"), 0x8c);
    struct regs r = far(kernel_regs(), 1, S(0), 0);
    if (DONE(&r)) {
        EXPECT_EQ(r.cx, r.start + 2); /* 8-byte slots whatever the operand size */
        EXPECT_EQ(r.dx, KCS);
    }
    r = far(user_regs(), 1, S(0), 0);
    TRAPPED(&r, V_GP, S(0), 0);
    gdt[S(0) / 8 + 1] |= 1ull << 40; /* a type in the upper half */
    r = far(kernel_regs(), 1, S(0), 0);
    TRAPPED(&r, V_GP, S(0), 0);
    call_gate(S(0), KCS32, 0, 0x8c); /* the target must be 64-bit code */
    r = far(kernel_regs(), 1, S(0), 0);
    TRAPPED(&r, V_GP, KCS32, 0);
    call_gate(S(0), KCS, 0, 0x0c);
    r = far(kernel_regs(), 1, S(0), 0);
    TRAPPED(&r, V_NP, S(0), 0);
    call_gate(S(0), KCS, 1ull << 56, 0x8c);
    r = far(kernel_regs(), 1, S(0), 0);
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(call_gate_to_cpl0_and_back)
{
    call_gate(S(0), KCS, (word)CODE("mov rax, ss; mov rcx, rsp; mov rdx, [rsp+16]; mov rsi, [rsp+24]; mov edi, cs; .byte 0x48, 0xcb"), 0xec);
    struct regs r = user_regs();
    word sp = r.sp;
    pointer32.selector = S(0);
    r.bx = (word)&pointer32;
    RUN(&r, ".byte 0xff, 0x1b; mov r8d, cs");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0); /* a null SS */
        EXPECT_EQ(r.cx, tss.rsp[0] - 32);
        EXPECT_EQ(r.dx, sp);
        EXPECT_EQ(r.si, UDS);
        EXPECT_EQ(r.di, KCS);
        EXPECT_EQ(r.r8, UCS64);
        EXPECT_EQ(r.sp, sp);
    }
    r = far(user_regs(), 0, S(0), 0); /* a jump raises no privilege */
    TRAPPED(&r, V_GP, KCS, 0);
}

TEST(iret_in_long_mode_always_pops_five)
{
    struct regs r = kernel_regs();
    word sp = r.sp;
    r.ax = (word)CODE("mov rbx, rsp");
    RUN(&r, "push 0x10; push 0x9000; push 2; push 8; push rax; iretq");
    if (DONE(&r)) {
        EXPECT_EQ(r.bx, 0x9000);
        EXPECT_EQ(r.ss, KDS);
    }
    r = kernel_regs(); /* a null SS is allowed for 64-bit code below CPL 3 */
    r.ax = (word)CODE("mov ebx, ss");
    RUN(&r, "mov rcx, rsp; push 0; push rcx; push 2; push 8; push rax; iretq");
    if (DONE(&r)) {
        EXPECT_EQ(r.bx, 0);
        EXPECT_EQ(r.sp, sp);
    }
    r = kernel_regs(); /* but not at CPL 3 */
    r.ax = (word)CODE("nop");
    RUN(&r, "mov rcx, rsp; push 3; push rcx; push 2; push 0x3b; push rax; iretq");
    EXPECT_EQ(r.vector, V_GP);
    EXPECT_EQ(r.cs, KCS);
}

TEST(iret_checks)
{
    struct regs r = kernel_regs();
    r.cs = UCS64; /* run_at's IRET itself */
    r.ss = KDS;   /* RPL 0 */
    run_at(&r, CODE("nop"));
    EXPECT_EQ(r.vector, V_GP);
    EXPECT_EQ(r.error, KDS);
    EXPECT_EQ(r.ip, (word)exec_iret);
    r = kernel_regs();
    r.cs = KDS;
    run_at(&r, CODE("nop"));
    TRAPPED(&r, V_GP, KDS, -1);
    EXPECT_EQ(r.ip, (word)exec_iret);
    r = kernel_regs();
    run_at(&r, (void *)0x0000800000000000); /* a non-canonical RIP */
    TRAPPED(&r, V_GP, 0, -1);
    r = kernel_regs();
    r.flags |= F_NT; /* in the image it is only a flag; in RFLAGS, IRET faults in long mode */
    r.ax = (word)CODE("nop");
    RUN(&r, "push 0x10; push 0x9000; push 2; push 8; push rax; iretq");
    EXPECT_EQ(r.vector, V_GP);
    EXPECT_EQ(r.error, 0);
}

TEST(iret_from_compatibility_to_64)
{
    struct regs r = user_regs();
    r.cs = UCS32;
    r.ax = (word)CODE("mov rcx, 0x123456789");
    word sp = r.sp;
    RUN32(&r, "pushfd; push 0x3b; push eax; iretd"); /* the same CPL: only 64-bit mode's IRET pops SS and RSP */
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, UCS64);
        EXPECT_EQ(r.cx, 0x123456789);
        EXPECT_EQ(r.sp, sp);
    }
}

TEST(compatibility_mode_has_limits_and_bases)
{
    u64 *page = new_page();
    page[0] = 0x4444;
    set_gdt(S(0), descriptor((word)page, 0xff, 0xf3, DB));
    struct regs r = user_regs();
    r.cs = UCS32;
    r.es = S(0) | 3;
    RUN32(&r, "mov eax, es:[0]; mov ebx, es:[0xfd]");
    if (TRAPPED(&r, V_GP, 0, 6))
        EXPECT_EQ(r.ax, 0x4444);
    r = user_regs();
    r.cs = UCS32;
    r.ss = S(0) | 3;
    r.sp = 0x10;
    RUN32(&r, "mov ebp, 0x100; mov eax, [ebp]");
    TRAPPED(&r, V_SS, 0, 5);
    EXPECT_EQ(r.sp, 0x10);
    r = user_regs();
    r.cs = UCS32;
    r.ax = 0xffffffff;
    RUN32(&r, "mov bl, [eax+0x100001]"); /* 32-bit addresses wrap: 0x100000, the image's start */
    if (DONE(&r))
        EXPECT_EQ(r.bx & 0xff, *(volatile u8 *)0x100000ul);
}

TEST(sixteen_bit_code_under_long_mode)
{
    set_gdt(S(0), descriptor(0, 0xfffff, 0xfb, G4K)); /* D clear */
    struct regs r = user_regs();
    r.cs = S(0) | 3;
    RUN16(&r, "mov ax, 0x1234; mov ecx, 0x12345678; push ax");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax & 0xffff, 0x1234);
        EXPECT_EQ(r.cx, 0x12345678);
        EXPECT_EQ(r.cs, S(0) | 3);
    }
}

TEST(segment_loads_in_64_bit_mode)
{
    struct regs r = kernel_regs();
    RUN(&r, "xor eax, eax; mov ss, eax; mov ebx, ss"); /* null SS at CPL 0 */
    if (DONE(&r))
        EXPECT_EQ(r.bx, 0);
    r = user_regs();
    RUN(&r, "xor eax, eax; mov ss, eax"); /* not at CPL 3 */
    TRAPPED(&r, V_GP, 0, 2);
    r = user_regs();
    r.ax = 3;
    RUN(&r, "mov ss, eax");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.ax = KCS; /* a readable code segment in DS */
    RUN(&r, "mov ds, eax");
    DONE(&r);
    r = kernel_regs();
    r.ax = TSS_SEL;
    RUN(&r, "mov ds, eax");
    TRAPPED(&r, V_GP, TSS_SEL, 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x13, 12));
    r = kernel_regs();
    r.ax = S(0);
    RUN(&r, "mov ss, eax");
    TRAPPED(&r, V_SS, S(0), 0);
    r = kernel_regs();
    RUN(&r, "push fs; pop fs; push gs; pop gs"); /* 8 bytes each */
    DONE(&r);
}

TEST(lar_and_lsl_in_long_mode)
{
    struct regs r = kernel_regs();
    r.bx = TSS_SEL;
    RUN(&r, "lar eax, ebx; setz dl; lsl ecx, ebx; setz dh");
    if (DONE(&r)) {
        EXPECT_EQ(r.dx & 0xffff, 0x0101);
        EXPECT_EQ(r.ax, 0x8b00);
        EXPECT_EQ(r.cx, sizeof tss - 1);
    }
    set_gdt(S(0), descriptor(0, 103, 0x81, 0)); /* a 16-bit TSS: not a type of long mode */
    r = kernel_regs();
    r.bx = S(0);
    RUN(&r, "lar eax, ebx; setz dl; lsl ecx, ebx; setz dh");
    if (DONE(&r))
        EXPECT_EQ(r.dx & 0xffff, 0);
    set_gdt(S(0), (u64)KCS << 16 | 0x8cull << 40); /* a call gate: LAR only */
    r = kernel_regs();
    r.bx = S(0);
    RUN(&r, "lar eax, ebx; setz dl; lsl ecx, ebx; setz dh");
    if (DONE(&r))
        EXPECT_EQ(r.dx & 0xffff, 0x0001);
}
