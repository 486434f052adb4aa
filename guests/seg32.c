/* Segmentation in protected mode: loads of every type, limits, expand-down, null, conforming; far
 * transfers; call gates; gates of interrupts; LAR LSL VERR VERW; IRET.
 * SDM vol. 3 chapters 3.4-3.5, 5 (protection in older editions), 6; vol. 2 pseudo-code. */
#include "guest.h"

#define S(n) (TEST_SEL + 8 * (n))

/* A snippet at CPL 3 or 0 that loads AX into each data segment register. */
static struct regs load_ds(struct regs r, u16 selector)
{
    r.ax = selector;
    RUN(&r, "mov ds, ax");
    return r;
}
static struct regs load_ss(struct regs r, u16 selector)
{
    r.ax = selector;
    RUN(&r, "mov ss, ax; nop");
    return r;
}

TEST(data_segment_load_checks)
{
    set_gdt(S(0), descriptor(0, 0xfffff, 0x93, 12)); /* DPL 0 data */
    struct regs r = load_ds(user_regs(), S(0));
    TRAPPED(&r, V_GP, S(0), 0);
    r = load_ds(user_regs(), S(0) | 3);
    TRAPPED(&r, V_GP, S(0), 0); /* the error code has no RPL */
    set_gdt(S(0), descriptor(0, 0xfffff, 0xf3, 12));
    r = load_ds(kernel_regs(), S(0) | 3);
    DONE(&r);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x93, 12));
    r = load_ds(kernel_regs(), S(0) | 3); /* RPL 3 > DPL 0 */
    TRAPPED(&r, V_GP, S(0), 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x13, 12)); /* not present */
    r = load_ds(kernel_regs(), S(0));
    TRAPPED(&r, V_NP, S(0), 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x99, 12)); /* execute-only code */
    r = load_ds(kernel_regs(), S(0));
    TRAPPED(&r, V_GP, S(0), 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x9b, 12)); /* readable code */
    r = load_ds(kernel_regs(), S(0));
    DONE(&r);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x9f, 12)); /* readable conforming, DPL 0, from CPL 3 */
    r = load_ds(user_regs(), S(0) | 3);
    DONE(&r);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x89, 0)); /* a TSS */
    r = load_ds(kernel_regs(), S(0));
    TRAPPED(&r, V_GP, S(0), 0);
    r = load_ds(kernel_regs(), GDT_SLOTS * 8); /* beyond the limit */
    TRAPPED(&r, V_GP, GDT_SLOTS * 8, 0);
    r = load_ds(kernel_regs(), 4 | 0x48); /* no LDT */
    TRAPPED(&r, V_GP, 0x4c, 0);
}

TEST(type_check_before_present)
{
    set_gdt(S(0), descriptor(0, 0xfffff, 0x09, 0)); /* TSS, not present */
    struct regs r = load_ds(kernel_regs(), S(0));
    TRAPPED(&r, V_GP, S(0), 0);
    r = load_ss(kernel_regs(), S(0));
    TRAPPED(&r, V_GP, S(0), 0);
}

TEST(stack_segment_load_checks)
{
    struct regs r = load_ss(kernel_regs(), 0);
    TRAPPED(&r, V_GP, 0, 0);
    r = load_ss(kernel_regs(), UDS); /* RPL 3 */
    TRAPPED(&r, V_GP, UDS & ~3, 0);
    r = load_ss(user_regs(), KDS);
    TRAPPED(&r, V_GP, KDS, 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x91, 12)); /* read-only data */
    r = load_ss(kernel_regs(), S(0));
    TRAPPED(&r, V_GP, S(0), 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x9b, 12)); /* code */
    r = load_ss(kernel_regs(), S(0));
    TRAPPED(&r, V_GP, S(0), 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x13, 12)); /* not present: #SS */
    r = load_ss(kernel_regs(), S(0));
    TRAPPED(&r, V_SS, S(0), 0);
    set_gdt(S(0), descriptor(0, 0xfffff, 0xb3, 12)); /* DPL 1 at CPL 0 */
    r = load_ss(kernel_regs(), S(0));
    TRAPPED(&r, V_GP, S(0), 0);
}

TEST(load_sets_the_accessed_bit)
{
    set_gdt(S(0), descriptor(0, 0xfffff, 0x92, 12));
    struct regs r = load_ds(kernel_regs(), S(0));
    DONE(&r);
    EXPECT_EQ(gdt[S(0) / 8] >> 40 & 0xff, 0x93);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x12, 12)); /* a fault leaves it */
    r = load_ds(kernel_regs(), S(0));
    EXPECT_EQ(gdt[S(0) / 8] >> 40 & 0xff, 0x12);
}

TEST(null_selector_faults_at_use)
{
    for (u16 null = 0; null < 4; null++) {
        struct regs r = kernel_regs();
        r.ax = null;
        RUN(&r, "mov es, ax; mov ebx, es:[eax]");
        if (TRAPPED(&r, V_GP, 0, 2))
            EXPECT_EQ(r.es, null);
    }
}

TEST(limits_bytes_and_pages)
{
    u8 *page = new_page();
    set_gdt(S(0), descriptor((word)page, 0x3ff, 0x93, DB));
    struct regs r = kernel_regs();
    r.es = S(0);
    r.bx = 0x3fc;
    RUN(&r, "mov eax, es:[ebx]");
    DONE(&r);
    r = kernel_regs();
    r.es = S(0);
    r.bx = 0x3fd;
    RUN(&r, "mov eax, es:[ebx]");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.es = S(0);
    r.bx = 0x3ff;
    RUN(&r, "mov al, es:[ebx]");
    DONE(&r);
    r = kernel_regs();
    r.es = S(0);
    r.bx = 0xfffffffe; /* wraps: beyond the limit */
    RUN(&r, "mov eax, es:[ebx]");
    TRAPPED(&r, V_GP, 0, 0);
    set_gdt(S(0), descriptor((word)page, 0, 0x93, G4K | DB)); /* one page */
    r = kernel_regs();
    r.es = S(0);
    r.bx = 0xffc;
    RUN(&r, "mov eax, es:[ebx]; mov eax, es:[ebx+1]");
    TRAPPED(&r, V_GP, 0, 3);
}

TEST(write_to_readonly_and_code)
{
    set_gdt(S(0), descriptor(0, 0xfffff, 0x91, 12));
    struct regs r = kernel_regs();
    r.es = S(0);
    r.bx = (word)new_page();
    RUN(&r, "mov eax, es:[ebx]; mov es:[ebx], eax");
    TRAPPED(&r, V_GP, 0, 3);
    r = kernel_regs();
    r.bx = (word)new_page();
    RUN(&r, "mov eax, cs:[ebx]; mov cs:[ebx], eax");
    TRAPPED(&r, V_GP, 0, 3);
    r = kernel_regs();
    r.es = S(0);
    r.bx = (word)new_page();
    RUN(&r, "lock inc dword ptr es:[ebx]");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(execute_only_code_cannot_be_read)
{
    set_gdt(S(0), descriptor(0, 0xfffff, 0x99, 12));
    struct regs r = kernel_regs();
    r.cs = S(0);
    RUN(&r, "mov eax, cs:[0x100000]");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(expand_down)
{
    u8 *page = new_page();
    /* 32-bit expand-down: valid offsets are limit+1 .. 0xffffffff. */
    set_gdt(S(0), descriptor((word)page - 0x1000, 0xfff, 0x97, DB));
    struct regs r = kernel_regs();
    r.es = S(0);
    r.bx = 0x1000;
    RUN(&r, "mov eax, es:[ebx]");
    DONE(&r);
    r = kernel_regs();
    r.es = S(0);
    r.bx = 0xfff;
    RUN(&r, "mov al, es:[ebx]");
    TRAPPED(&r, V_GP, 0, 0);
    /* 16-bit: the upper bound is 0xffff. */
    set_gdt(S(0), descriptor((word)page - 0xf000, 0xefff, 0x97, 0));
    r = kernel_regs();
    r.es = S(0);
    r.bx = 0xfffc;
    RUN(&r, "mov eax, es:[ebx]; mov eax, es:[ebx+1]");
    TRAPPED(&r, V_GP, 0, 3);
    r = kernel_regs();
    r.es = S(0);
    r.bx = 0xefff;
    RUN(&r, "mov al, es:[ebx]");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(stack_limit_is_ss)
{
    u8 *page = new_page();
    set_gdt(S(0), descriptor((word)page, 0xff, 0xf3, DB));
    struct regs r = user_regs();
    r.ss = S(0) | 3;
    r.sp = 0x104;
    RUN(&r, "push eax");
    TRAPPED(&r, V_SS, 0, 0);
    EXPECT_EQ(r.sp, 0x104);
    r = user_regs();
    r.ss = S(0) | 3;
    r.sp = 0;
    RUN(&r, "push eax"); /* wraps to 0xfffffffc */
    TRAPPED(&r, V_SS, 0, 0);
    r = user_regs();
    r.ss = S(0) | 3;
    r.sp = 0x80, r.bp = 0x100;
    RUN(&r, "mov eax, [ebp]");
    TRAPPED(&r, V_SS, 0, 0);
    r = user_regs();
    r.ss = S(0) | 3;
    r.sp = 0xfc;
    RUN(&r, "pop eax; pop eax");
    TRAPPED(&r, V_SS, 0, 1);
}

TEST(sixteen_bit_stack_wraps)
{
    u8 *page = (u8 *)0x20000;
    set_gdt(S(0), descriptor((word)page, 0xffff, 0xf3, 0));
    struct regs r = user_regs();
    r.ss = S(0) | 3;
    r.ax = 0xcafe1234; /* IRET loads only SP of a 16-bit stack: ESP is loaded by the code itself */
    RUN(&r, "mov esp, 0x12340000; push eax");
    if (DONE(&r)) {
        EXPECT_EQ(r.sp & 0xffff, 0xfffc);
        EXPECT_EQ(*(volatile u32 *)(page + 0xfffc), 0xcafe1234);
        EXPECT_EQ(r.sp >> 16, 0x1234);
    }
    r = user_regs();
    r.ss = S(0) | 3;
    r.sp = 0x12340002; /* the word at 0xfffe would straddle the limit */
    RUN(&r, "push eax");
    TRAPPED(&r, V_SS, 0, 0);
}

TEST(code_limit)
{
    u8 *page = new_page();
    memset(page, 0x90, 64);
    set_gdt(S(0), descriptor((word)page, 0x0f, 0x9b, DB));
    struct regs r = kernel_regs();
    r.cs = S(0);
    run_at(&r, (void *)8); /* runs off the limit */
    EXPECT_EQ(r.vector, V_GP);
    EXPECT_EQ(r.error, 0);
    EXPECT_EQ(r.ip, 0x10);
    page[0x0e] = 0xb8; /* an instruction that crosses the limit faults as a whole */
    r = kernel_regs();
    r.cs = S(0);
    run_at(&r, (void *)8);
    EXPECT_EQ(r.vector, V_GP);
    EXPECT_EQ(r.ip, 0x0e);
    page[0] = 0xeb, page[1] = 0x20; /* a jump beyond: a fault of the jump */
    r = kernel_regs();
    r.cs = S(0);
    run_at(&r, (void *)0);
    EXPECT_EQ(r.vector, V_GP);
    EXPECT_EQ(r.ip, 0);
}

/* `jmp far` or `call far` through a pointer in memory at EBX. */
static u32 pointer[2];
static struct regs far(struct regs r, int call, u16 selector, word offset)
{
    pointer[0] = offset;
    pointer[1] = selector;
    r.bx = (word)pointer;
    if (call)
        RUN(&r, "call fword ptr [ebx]");
    else
        RUN(&r, "jmp fword ptr [ebx]");
    return r;
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
    r = far(kernel_regs(), 0, UCS32, ok); /* a lower privilege by a jump */
    TRAPPED(&r, V_GP, UCS32 & ~3, 0);
    r = far(user_regs(), 0, UCS32, ok);
    DONE(&r);
    r = far(user_regs(), 0, UCS32 & ~3, ok); /* RPL 0: the CPL stays 3 */
    if (DONE(&r))
        EXPECT_EQ(r.cs, UCS32);
    set_gdt(S(0), descriptor(0, 0xfffff, 0x1b, 12));
    r = far(kernel_regs(), 0, S(0), ok);
    TRAPPED(&r, V_NP, S(0), 0);
    set_gdt(S(0), descriptor(0, 0x0ff, 0x9b, DB));
    r = far(kernel_regs(), 0, S(0), 0x100); /* beyond the new limit */
    TRAPPED(&r, V_GP, 0, 0);
    r = far(kernel_regs(), 0, GDT_SLOTS * 8 + 8, ok);
    TRAPPED(&r, V_GP, GDT_SLOTS * 8 + 8, 0);
}

TEST(conforming_code_keeps_cpl)
{
    set_gdt(S(0), descriptor(0, 0xfffff, 0x9f, 12)); /* conforming, DPL 0 */
    word ok = (word)CODE("mov eax, cs");
    struct regs r = far(user_regs(), 0, S(0), ok);
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, S(0) | 3);
        EXPECT_EQ(r.ax, S(0) | 3);
    }
    set_gdt(S(0), descriptor(0, 0xfffff, 0xff, 12)); /* conforming, DPL 3 > CPL 0 */
    r = far(kernel_regs(), 0, S(0), ok);
    TRAPPED(&r, V_GP, S(0), 0);
}

TEST(far_call_and_return)
{
    struct regs r = kernel_regs();
    word sp = r.sp;
    r.bx = (word)pointer;
    pointer[0] = (word)CODE("mov ecx, [esp]; mov edx, [esp+4]; retf 8");
    pointer[1] = KCS;
    RUN(&r, "call fword ptr [ebx]");
    if (DONE(&r)) {
        EXPECT_EQ(r.sp, sp + 8);
        EXPECT_EQ(r.cx, r.start + 2);
        EXPECT_EQ(r.dx & 0xffff, KCS);
    }
}

TEST(far_return_checks)
{
    struct regs r = user_regs();
    r.ax = KCS;
    RUN(&r, "push eax; push 0; retf"); /* RPL < CPL */
    TRAPPED(&r, V_GP, KCS, 3);
    r = kernel_regs();
    RUN(&r, "push 0; push 0; retf");
    TRAPPED(&r, V_GP, 0, 4);
    r = kernel_regs();
    r.ax = UCS32, r.cx = UDS, r.dx = (word)CODE("mov eax, cs");
    RUN(&r, "push ecx; push 0x9000; push eax; push edx; retf"); /* to CPL 3 */
    if (DONE(&r)) {
        EXPECT_EQ(r.cs, UCS32);
        EXPECT_EQ(r.sp, 0x9000);
        EXPECT_EQ(r.ds, 0); /* DS (DPL 0) was made null */
        EXPECT_EQ(r.es, 0);
    }
    r = kernel_regs();
    r.ds = r.es = UDS;
    r.ax = UCS32, r.cx = UDS, r.dx = (word)CODE("nop");
    RUN(&r, "push ecx; push 0x9000; push eax; push edx; push 0; push 0; add esp, 8; retf 0");
    if (DONE(&r))
        EXPECT_EQ(r.ds, UDS);
    r = kernel_regs();
    r.ax = UCS32, r.cx = KDS, r.dx = (word)CODE("nop");
    RUN(&r, "push ecx; push 0x9000; push eax; push edx; retf"); /* SS of the wrong privilege */
    TRAPPED(&r, V_GP, KDS, 8);
}

TEST(call_gate_same_level)
{
    word in = (word)CODE("mov ecx, [esp+4]");
    call_gate(S(0), KCS, in, 0x8c, 0);
    struct regs r = far(kernel_regs(), 1, S(0), 0xdeadbeef); /* the offset is ignored */
    if (DONE(&r))
        EXPECT_EQ(r.cx & 0xffff, KCS);
    r = far(kernel_regs(), 0, S(0), 0);
    DONE(&r);
    r = far(user_regs(), 1, S(0), 0);
    TRAPPED(&r, V_GP, S(0), 0); /* the gate's DPL 0 */
    call_gate(S(0), KCS, in, 0x0c, 0);
    r = far(kernel_regs(), 1, S(0), 0);
    TRAPPED(&r, V_NP, S(0), 0);
    call_gate(S(0), 0, in, 0x8c, 0);
    r = far(kernel_regs(), 1, S(0), 0);
    TRAPPED(&r, V_GP, 0, 0);
    call_gate(S(0), KDS, in, 0x8c, 0);
    r = far(kernel_regs(), 1, S(0), 0);
    TRAPPED(&r, V_GP, KDS, 0);
}

TEST(call_gate_to_cpl0_copies_words)
{
    word in = (word)CODE("mov eax, cs; mov ecx, esp; mov edx, [esp+8]; mov esi, [esp+12]; mov edi, ss; mov ebp, [esp+20]");
    call_gate(S(0), KCS, in, 0xec, 2);
    struct regs r = user_regs();
    word sp = r.sp;
    pointer[0] = 0, pointer[1] = S(0);
    r.bx = (word)pointer;
    RUN(&r, "push 0x1111; push 0x2222; call fword ptr [ebx]");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, KCS);
        EXPECT_EQ(r.cx, tss.esp0 - 24); /* SS ESP p1 p2 CS EIP */
        EXPECT_EQ(r.dx, 0x2222);
        EXPECT_EQ(r.si, 0x1111);
        EXPECT_EQ(r.di & 0xffff, KDS);
        EXPECT_EQ(r.bp, UDS);
        u32 *top = (u32 *)(tss.esp0 - 24);
        EXPECT_EQ(top[4], sp - 8);
        EXPECT_EQ(top[1] & 0xffff, UCS32);
    }
    /* and back with RETF n, which removes the words from both stacks */
    in = (word)CODE("mov eax, 0x1234; retf 8");
    call_gate(S(0), KCS, in, 0xec, 2);
    r = user_regs();
    r.bx = (word)pointer;
    RUN(&r, "push 0x1111; push 0x2222; call fword ptr [ebx]; mov ecx, cs");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x1234);
        EXPECT_EQ(r.cx & 0xffff, UCS32);
        EXPECT_EQ(r.sp, sp);
    }
    r = user_regs(); /* a jump cannot raise the privilege */
    r.bx = (word)pointer;
    RUN(&r, "jmp fword ptr [ebx]");
    TRAPPED(&r, V_GP, KCS, 0);
}

TEST(call_gate_16_bit)
{
    u8 *low = (u8 *)0x30000;
    memcpy(low, CODE("movzx ecx, word ptr [esp]; movzx edx, word ptr [esp+2]; movzx esi, word ptr [esp+4]; mov edi, esp"), 32);
    set_gdt(S(1), descriptor(0x30000, 0xffff, 0x9b, DB));
    call_gate(S(0), S(1), 0, 0xe4, 1);
    struct regs r = user_regs();
    pointer[0] = 0, pointer[1] = S(0);
    r.bx = (word)pointer;
    r.ax = 0x7777;
    RUN(&r, "push ax; call fword ptr [ebx]");
    if (DONE(&r)) {
        EXPECT_EQ(r.di, tss.esp0 - 10); /* SS SP p CS IP, words */
        EXPECT_EQ(r.dx, UCS32);
        EXPECT_EQ(r.si, 0x7777);
        EXPECT_EQ(r.cx, (r.start + 4) & 0xffff);
    }
}

TEST(call_gate_stack_faults)
{
    word in = (word)CODE("nop");
    call_gate(S(0), KCS, in, 0xec, 0);
    pointer[0] = 0, pointer[1] = S(0);
    /* The exception's own delivery needs ESP0 too: use CPL 1 for the gate's target. */
    set_gdt(S(2), descriptor(0, 0xfffff, 0xbb, 12)); /* code DPL 1 */
    set_gdt(S(3), descriptor(0, 0xfffff, 0xb3, 12)); /* data DPL 1 */
    call_gate(S(0), S(2), in, 0xec, 0);
    tss.ss1 = S(3) | 1;
    tss.esp1 = (word)new_page() + 4096;
    struct regs r = user_regs();
    r.bx = (word)pointer;
    RUN(&r, "call fword ptr [ebx]");
    if (DONE(&r))
        EXPECT_EQ(r.cs, S(2) | 1);
    tss.ss1 = 0;
    r = user_regs();
    r.bx = (word)pointer;
    RUN(&r, "call fword ptr [ebx]");
    TRAPPED(&r, V_TS, 0, 0);
    tss.ss1 = KDS; /* RPL 0 != 1 */
    r = user_regs();
    r.bx = (word)pointer;
    RUN(&r, "call fword ptr [ebx]");
    TRAPPED(&r, V_TS, KDS, 0);
    tss.ss1 = S(3) | 1;
    set_gdt(S(3), descriptor(0, 0xfffff, 0x33, 12)); /* not present */
    r = user_regs();
    r.bx = (word)pointer;
    RUN(&r, "call fword ptr [ebx]");
    TRAPPED(&r, V_SS, S(3), 0);
    set_gdt(S(3), descriptor(0, 0xff, 0xb3, DB)); /* too small */
    r = user_regs();
    r.bx = (word)pointer;
    RUN(&r, "call fword ptr [ebx]");
    TRAPPED(&r, V_SS, S(3), 0);
    set_gdt(S(3), descriptor(0, 0xfffff, 0xb1, 12)); /* read-only */
    r = user_regs();
    r.bx = (word)pointer;
    RUN(&r, "call fword ptr [ebx]");
    TRAPPED(&r, V_TS, S(3), 0);
}

TEST(interrupt_gate_privileges)
{
    struct regs r = user_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, 0x60 * 8 + 2, 0);
    set_gate(0x60, KCS, STUB(0x60), GATE_INT | 0x60, 0);
    r = user_regs();
    r.flags |= F_IOPL(2);
    RUN(&r, "int 0x60");
    if (TRAPPED(&r, 0x60, 0, 2)) {
        EXPECT_EQ(r.cs, UCS32);
        EXPECT_EQ(r.ss, UDS);
    }
    set_gate(0x60, UCS32 & ~3, STUB(0x60), GATE_INT | 0x60, 0); /* handler less privileged */
    r = kernel_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, UCS32 & ~3, 0);
    set_gate(0x60, 0, STUB(0x60), GATE_INT, 0);
    r = kernel_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, 0, 0);
    idt[0x60].type = 0x8c; /* a call gate in the IDT */
    r = kernel_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_GP, 0x60 * 8 + 2, 0);
    set_limits(sizeof gdt - 1, 0x82 * 8 - 1);
    r = kernel_regs();
    RUN(&r, "int 0x82");
    TRAPPED(&r, V_GP, 0x82 * 8 + 2, 0);
}

TEST(interrupt_gate_16_bit)
{
    /* A 16-bit gate pushes words; its target lies in the low 64 KiB of its segment. */
    u8 *low = (u8 *)0x30000;
    memcpy(low, CODE("movzx ecx, word ptr [esp]; movzx edx, word ptr [esp+2]; movzx esi, word ptr [esp+4]; mov edi, esp"), 32);
    set_gdt(S(1), descriptor(0x30000, 0xffff, 0x9b, DB));
    set_gate(0x60, S(1), (void *)0, 0x86, 0);
    struct regs r = kernel_regs();
    word sp = r.sp;
    r.flags = 2 | F_CF;
    RUN(&r, "int 0x60");
    if (DONE(&r)) {
        EXPECT_EQ(r.di, sp - 6);
        EXPECT_EQ(r.cx, (r.start + 2) & 0xffff);
        EXPECT_EQ(r.dx, KCS);
        EXPECT_EQ(r.si, 2 | F_CF);
    }
}

TEST(interrupt_to_ring_with_bad_stack_is_ts)
{
    set_gdt(S(2), descriptor(0, 0xfffff, 0xbb, 12));
    set_gate(0x60, S(2), STUB(0x60), GATE_INT | 0x60, 0);
    tss.ss1 = KDS;
    struct regs r = user_regs();
    RUN(&r, "int 0x60");
    TRAPPED(&r, V_TS, KDS, 0); /* EXT clear: a software interrupt */
    set_gate(V_UD, S(2), STUB(V_UD), GATE_INT, 0);
    r = user_regs();
    RUN(&r, "ud2");
    TRAPPED(&r, V_TS, KDS + 1, 0); /* EXT set */
}

TEST(conforming_handler_keeps_cpl)
{
    set_gdt(S(0), descriptor(0, 0xfffff, 0x9f, 12));
    word in = (word)CODE("mov eax, cs; mov ecx, esp");
    set_gate(0x60, S(0), (void *)in, GATE_INT | 0x60, 0);
    struct regs r = user_regs();
    word sp = r.sp;
    RUN(&r, "int 0x60");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax & 0xffff, S(0) | 3);
        EXPECT_EQ(r.cx, sp - 12);
    }
}

TEST(iret_checks)
{
    struct regs r = kernel_regs();
    r.ax = KDS;
    RUN(&r, "pushfd; push eax; push 0; iretd");
    TRAPPED(&r, V_GP, KDS, 4);
    r = user_regs();
    r.ax = KCS;
    RUN(&r, "pushfd; push eax; push 0; iretd");
    TRAPPED(&r, V_GP, KCS, 4);
    r = kernel_regs();
    RUN(&r, "pushfd; push 0; push 0; iretd");
    TRAPPED(&r, V_GP, 0, 5);
    r = user_regs(); /* CPL 3 changes neither IOPL nor IF by IRET */
    r.ax = (word)CODE("nop"), r.cx = F_IOPL(3) | F_IF | F_CF | 2;
    RUN(&r, "push ecx; push cs; push eax; iretd");
    if (DONE(&r))
        EXPECT_EQ(r.flags & (F_IOPL(3) | F_IF | F_CF), F_CF);
    r = kernel_regs();
    r.ax = (word)CODE("nop"), r.cx = F_IOPL(2) | F_NT | F_CF | 2;
    RUN(&r, "push ecx; push cs; push eax; iretd");
    if (DONE(&r))
        EXPECT_EQ(r.flags & (F_IOPL(3) | F_NT | F_CF), F_CF | F_IOPL(2) | F_NT);
    r = kernel_regs(); /* 16-bit IRET */
    r.ax = 0x2000;
    u8 *low = (u8 *)0x2000;
    asm("" : "+r"(low));
    memcpy(low, CODE("nop"), 8);
    RUN(&r, "pushf; push cs; pop ecx; push cx; push ax; .byte 0x66; iretd");
    DONE(&r);
}

TEST(lar_lsl_verr_verw)
{
    static const struct { u8 access, flags; int lar, lsl, r, w; } list[] = {
        {0x93, 12, 1, 1, 1, 1}, {0x91, 12, 1, 1, 1, 0}, {0x9b, 12, 1, 1, 1, 0}, {0x99, 12, 1, 1, 0, 0},
        {0x89, 0, 1, 1, 0, 0},  /* TSS */
        {0x82, 0, 1, 1, 0, 0},  /* LDT */
        {0x8c, 0, 1, 0, 0, 0},  /* call gate */
        {0x85, 0, 1, 0, 0, 0},  /* task gate */
        {0x8e, 0, 0, 0, 0, 0},  /* interrupt gate */
        {0x80, 0, 0, 0, 0, 0},  /* reserved */
        {0x13, 12, 1, 1, 1, 1}, /* not present: still readable to these */
    };
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        u64 d = descriptor(0x123456, 0x54321, list[i].access, list[i].flags);
        set_gdt(S(0), d);
        struct regs r = kernel_regs();
        r.bx = S(0);
        r.ax = r.cx = 0xdead;
        RUN(&r, "lar eax, ebx; setz dl; lsl ecx, ebx; setz dh; mov edi, edx; verr bx; setz dl; verw bx; setz dh");
        if (!DONE(&r))
            continue;
        EXPECT_EQ(r.di & 0xff, list[i].lar);
        EXPECT_EQ(r.di >> 8 & 0xff, list[i].lsl);
        EXPECT_EQ(r.dx & 0xff, list[i].r);
        EXPECT_EQ(r.dx >> 8 & 0xff, list[i].w);
        EXPECT_EQ(r.ax, list[i].lar ? (u32)(d >> 32) & 0xffff00 : 0xdead); /* access rights as in the manual's mask */
        EXPECT_EQ(r.cx, !list[i].lsl ? 0xdead : list[i].flags & 8 ? 0x54321fff : 0x54321);
    }
    struct regs r = user_regs(); /* privilege counts */
    r.bx = KDS;
    RUN(&r, "lar eax, ebx; setz dl; verr bx; setz dh");
    if (DONE(&r))
        EXPECT_EQ(r.dx & 0xffff, 0);
    r = user_regs();
    set_gdt(S(0), descriptor(0, 0xfffff, 0x9f, 12)); /* conforming code: no privilege check */
    r.bx = S(0);
    RUN(&r, "lar eax, ebx; setz dl; verr bx; setz dh");
    if (DONE(&r))
        EXPECT_EQ(r.dx & 0xffff, 0x0101);
    r = kernel_regs();
    r.bx = 0;
    RUN(&r, "lar eax, ebx; setz dl; verr bx; setz dh");
    if (DONE(&r))
        EXPECT_EQ(r.dx & 0xffff, 0);
    r = kernel_regs();
    r.bx = 0xfff8; /* beyond: no fault */
    RUN(&r, "lsl eax, ebx; setz dl; verw bx; setz dh");
    if (DONE(&r))
        EXPECT_EQ(r.dx & 0xffff, 0);
}

TEST(arpl)
{
    struct regs r = user_regs();
    r.ax = 0x1230, r.cx = 0x33;
    RUN(&r, "arpl ax, cx; setz dl");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x1233);
        EXPECT_EQ(r.dx & 0xff, 1);
    }
    r = user_regs();
    r.ax = 0x1233, r.cx = 0x31;
    RUN(&r, "arpl ax, cx; setz dl");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x1233);
        EXPECT_EQ(r.dx & 0xff, 0);
    }
}

TEST(ldt)
{
    struct regs r = kernel_regs();
    ldt[2] = descriptor(0, 0xfffff, 0x93, 12);
    r.ax = LDT_SEL, r.cx = 0x14;
    RUN(&r, "lldt ax; mov es, cx; sldt dx; str si");
    if (DONE(&r)) {
        EXPECT_EQ(r.dx & 0xffff, LDT_SEL);
        EXPECT_EQ(r.si & 0xffff, TSS_SEL);
    }
    r = kernel_regs();
    r.cx = sizeof ldt | 4;
    RUN(&r, "mov es, cx");
    TRAPPED(&r, V_GP, sizeof ldt | 4, 0);
    r = kernel_regs();
    r.ax = KDS;
    RUN(&r, "lldt ax");
    TRAPPED(&r, V_GP, KDS, 0);
    set_gdt(S(0), descriptor((word)ldt, 255, 0x02, 0));
    r = kernel_regs();
    r.ax = S(0);
    RUN(&r, "lldt ax");
    TRAPPED(&r, V_NP, S(0), 0);
    r = kernel_regs();
    r.ax = 0x14; /* a selector of the LDT itself */
    RUN(&r, "lldt ax");
    TRAPPED(&r, V_GP, 0x14, 0);
    r = kernel_regs();
    r.ax = 0, r.cx = 0x14;
    RUN(&r, "lldt ax; mov es, cx");
    TRAPPED(&r, V_GP, 0x14, 3);
}

TEST(ltr_checks)
{
    struct regs r = kernel_regs();
    r.ax = 0;
    RUN(&r, "ltr ax");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.ax = TSS_SEL; /* busy */
    RUN(&r, "ltr ax");
    TRAPPED(&r, V_GP, TSS_SEL, 0);
    set_gdt(S(0), descriptor((word)&tss, 103, 0x09, 0));
    r = kernel_regs();
    r.ax = S(0);
    RUN(&r, "ltr ax");
    TRAPPED(&r, V_NP, S(0), 0);
    set_gdt(S(0), descriptor((word)&tss, 103, 0x89, 0));
    r = kernel_regs();
    r.ax = S(0);
    RUN(&r, "ltr ax");
    DONE(&r);
    EXPECT_EQ(gdt[S(0) / 8] >> 40 & 0xff, 0x8b);
}

TEST(mov_ss_shadow_hides_one_instruction)
{
    /* A single-step trap between MOV SS and the next instruction is held back. */
    struct regs r = kernel_regs();
    r.ax = KDS;
    r.cx = 0x102;
    RUN(&r, "push ecx; popfd; mov ss, ax; nop; nop");
    TRAPPED(&r, V_DB, 0, 5);
}

TEST(pop_segment_registers)
{
    struct regs r = kernel_regs();
    word sp = r.sp;
    RUN(&r, "push 0xfff8; pop es");
    TRAPPED(&r, V_GP, 0xfff8, 5);
    EXPECT_EQ(r.sp, sp - 4);
    r = kernel_regs();
    r.bx = (word)pointer;
    pointer[0] = 0x11223344, pointer[1] = 0xfff8;
    r.cx = 5;
    RUN(&r, "les ecx, [ebx]");
    TRAPPED(&r, V_GP, 0xfff8, 0);
    EXPECT_EQ(r.cx, 5);
    pointer[1] = KDS;
    r = kernel_regs();
    r.bx = (word)pointer;
    RUN(&r, "lfs ecx, [ebx]");
    if (DONE(&r)) {
        EXPECT_EQ(r.cx, 0x11223344);
        EXPECT_EQ(r.fs, KDS);
    }
    r = kernel_regs();
    word top = r.sp;
    *(u32 *)(top - 4) = 0xaaaaaaaa;
    RUN(&r, "push ds"); /* writes at least 2 bytes, moves by 4 */
    if (DONE(&r)) {
        EXPECT_EQ(r.sp, top - 4);
    }
}
