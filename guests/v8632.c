/* Virtual-8086 mode, with and without VME: entry and exit, sensitive instructions by IOPL, interrupts,
 * the redirection bitmap, VIF and VIP, the I/O permission bitmap, segment limits; PVI.
 * SDM vol. 3 chapter 21 (8086 emulation), table 21-2. */
#include "guest.h"

#define SEG 0x2000 /* code */
#define STK 0x3000 /* stack */
#define LOW(segment, offset) ((u8 *)(((word)(segment) << 4) + (offset)))

static struct regs v86(unsigned iopl)
{
    struct regs r = kernel_regs();
    r.cs = SEG;
    r.ss = STK;
    r.sp = 0x800;
    r.v_ds = 0x4000, r.v_es = 0x5000, r.v_fs = 0x6000, r.v_gs = 0x7000;
    r.flags = 2 | F_VM | F_IOPL(iopl);
    return r;
}
/* Runs a 16-bit snippet at SEG:0. */
static void run_low(struct regs *r, const void *code)
{
    u8 *to = LOW(SEG, 0);
    asm("" : "+r"(to));
    memcpy(to, code, 64);
    run_at(r, (void *)0);
}
#define RUNV(r, body) run_low(r, CODE16(body))

TEST(entry_and_exit)
{
    struct regs r = v86(3);
    r.ax = 0x11112222;
    RUNV(&r, "mov bx, ds; mov cx, cs; mov dx, ss; mov si, es; mov di, fs");
    if (DONE(&r)) {
        EXPECT_EQ(r.flags & F_VM, F_VM);
        EXPECT_EQ(r.bx & 0xffff, 0x4000);
        EXPECT_EQ(r.cx & 0xffff, SEG);
        EXPECT_EQ(r.dx & 0xffff, STK);
        EXPECT_EQ(r.si & 0xffff, 0x5000);
        EXPECT_EQ(r.di & 0xffff, 0x6000);
        EXPECT_EQ(r.ax, 0x11112222);
        EXPECT_EQ(r.v_ds & 0xffff, 0x4000);
        EXPECT_EQ(r.v_gs & 0xffff, 0x7000);
        EXPECT_EQ(r.ds, 0); /* null in the handler */
        EXPECT_EQ(r.gs, 0);
        EXPECT_EQ(r.sp, 0x800);
    }
}

TEST(segments_are_paragraphs)
{
    struct regs r = v86(3);
    u8 *at = LOW(0x4321, 0x8765);
    asm("" : "+r"(at));
    *(volatile u16 *)at = 0xbeef;
    RUNV(&r, "mov ax, 0x4321; mov ds, ax; mov bx, [0x8765]");
    if (DONE(&r)) {
        EXPECT_EQ(r.bx & 0xffff, 0xbeef);
        EXPECT_EQ(r.v_ds & 0xffff, 0x4321);
    }
    /* beyond 1 MiB: no wrap with the A20 gate open */
    r = v86(3);
    RUNV(&r, "mov ax, 0xffff; mov ds, ax; mov eax, [0x10]");
    if (DONE(&r))
        EXPECT_EQ(r.ax, *(volatile u32 *)(0x100000 + 0));
}

TEST(limit_is_64k)
{
    struct regs r = v86(3);
    RUNV(&r, "mov ax, [0xffff]");
    TRAPPED(&r, V_GP, 0, 0);
    r = v86(3);
    RUNV(&r, "mov ebx, 0x10000; mov al, [ebx]");
    TRAPPED(&r, V_GP, 0, 6);
    r = v86(3);
    RUNV(&r, "mov sp, 1; push ax");
    TRAPPED(&r, V_SS, 0, 3);
    r = v86(3);
    RUNV(&r, "mov ebp, 0xffff; mov ax, [bp]");
    TRAPPED(&r, V_SS, 0, 6);
}

TEST(sensitive_with_iopl_0)
{
    static const struct { const char *what; u8 code[4]; } list[] = {
        {"cli", {0xfa}}, {"sti", {0xfb}}, {"pushf", {0x9c}}, {"popf", {0x9d}}, {"iret", {0xcf}}, {"int 0x60", {0xcd, 0x60}},
        {"pushfd", {0x66, 0x9c}}, {"popfd", {0x66, 0x9d}}, {"int3 by cd 3", {0xcd, 3}}};
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct regs r = v86(0);
        run_low(&r, list[i].code);
        if (!TRAPPED(&r, V_GP, 0, 0))
            put("(%s)\n", list[i].what);
    }
}

TEST(always_privileged)
{
    static const struct { const char *what; u8 code[4]; unsigned vector; } list[] = {
        {"hlt", {0xf4}, V_GP}, {"mov cr0", {0x0f, 0x20, 0xc0}, V_GP}, {"lgdt", {0x0f, 1, 0x16, 0}, V_GP},
        {"clts", {0x0f, 6}, V_GP}, {"mov dr7", {0x0f, 0x23, 0xf8}, V_GP}, {"wrmsr", {0x0f, 0x30}, V_GP},
        {"lldt", {0x0f, 0, 0xd0}, V_UD}, {"ltr", {0x0f, 0, 0xd8}, V_UD}, {"sldt", {0x0f, 0, 0xc0}, V_UD},
        {"str", {0x0f, 0, 0xc8}, V_UD}, {"verr", {0x0f, 0, 0xe0}, V_UD}, {"lar", {0x0f, 2, 0xc0}, V_UD},
        {"lsl", {0x0f, 3, 0xc0}, V_UD}, {"arpl", {0x63, 0xc0}, V_UD}, {"invlpg", {0x0f, 1, 0x3e, 0}, V_GP}};
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct regs r = v86(3);
        run_low(&r, list[i].code);
        if (!TRAPPED(&r, list[i].vector, 0, 0))
            put("(%s)\n", list[i].what);
    }
}

TEST(iopl_3_acts_on_if)
{
    struct regs r = v86(3);
    r.flags |= F_IF;
    RUNV(&r, "cli; pushf; pop ax; sti; cli; pushf; pop bx; push 0x7202; popf; pushf; pop cx; cli");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax & F_IF, 0);
        EXPECT_EQ(r.ax & F_IOPL(3), F_IOPL(3));
        EXPECT_EQ(r.cx & (F_IF | F_IOPL(3)), F_IF | F_IOPL(3)); /* POPF changes not IOPL */
    }
    r = v86(3);
    RUNV(&r, "push 0x0002; popf"); /* IOPL stays */
    if (DONE(&r))
        EXPECT_EQ(r.flags & (F_IOPL(3) | F_VM), F_IOPL(3) | F_VM);
    r = v86(3);
    RUNV(&r, "pushfd; pop eax");
    if (DONE(&r))
        EXPECT_EQ(r.ax & (F_VM | F_RF), 0); /* PUSHFD shows neither */
}

TEST(iret_in_v86)
{
    struct regs r = v86(3);
    u8 *to = LOW(SEG, 0x20);
    asm("" : "+r"(to));
    memcpy(to, "\xcd\x81", 2);
    const u8 *code = CODE16("push 3; push 0x2000; push 0x20; iret");
    u8 *start = LOW(SEG, 0);
    asm("" : "+r"(start));
    memcpy(start, code, 16);
    run_at(&r, (void *)0);
    if (DONE(&r)) {
        EXPECT_EQ(r.ip, 0x22);
        EXPECT_EQ(r.flags & (F_CF | F_VM | F_IOPL(3)), F_CF | F_VM | F_IOPL(3));
        EXPECT_EQ(r.sp, 0x800);
    }
}

TEST(interrupts_use_the_protected_idt)
{
    struct regs r = v86(3);
    RUNV(&r, "int 0x60"); /* the gate's DPL 0 */
    TRAPPED(&r, V_GP, 0x60 * 8 + 2, 0);
    r = v86(0);
    RUNV(&r, "int3"); /* INT3 is not IOPL-sensitive; its gate's DPL counts */
    TRAPPED(&r, V_GP, V_BP * 8 + 2, 0);
    set_gate(V_BP, KCS, STUB(V_BP), GATE_INT | 0x60, 0);
    r = v86(0);
    RUNV(&r, "int3");
    TRAPPED(&r, V_BP, 0, 1);
    set_gdt(TEST_SEL, descriptor(0, 0xfffff, 0xbb, 12)); /* a handler at CPL 1: #GP(CS) */
    set_gate(0x60, TEST_SEL, STUB(0x60), GATE_INT | 0x60, 0);
    r = v86(3);
    RUNV(&r, "int 0x60");
    TRAPPED(&r, V_GP, TEST_SEL, 0);
    set_gdt(TEST_SEL, descriptor(0, 0xfffff, 0x9f, 12)); /* conforming: #GP(CS) */
    r = v86(3);
    RUNV(&r, "int 0x60");
    TRAPPED(&r, V_GP, TEST_SEL, 0);
}

TEST(faults_keep_their_form)
{
    struct regs r = v86(3);
    RUNV(&r, "ud2");
    TRAPPED(&r, V_UD, 0, 0);
    r = v86(3);
    RUNV(&r, "xor cx, cx; div cx");
    TRAPPED(&r, V_DE, 0, 2);
    r = v86(3);
    r.flags |= F_TF;
    RUNV(&r, "nop; nop");
    TRAPPED(&r, V_DB, 0, 1);
    EXPECT_EQ(r.dr6 & 0x4000, 0x4000);
}

TEST(io_bitmap)
{
    tss.map[0x3f8 / 8] &= ~1; /* port 0x3f8 */
    struct regs r = v86(3);
    RUNV(&r, "mov dx, 0x3f9; in al, dx"); /* IOPL does not matter in V86 */
    TRAPPED(&r, V_GP, 0, 3);
    tss.map[0x3fd / 8] &= ~(1 << 5);
    r = v86(0);
    RUNV(&r, "mov dx, 0x3fd; in al, dx; cli");
    if (TRAPPED(&r, V_GP, 0, 4))
        EXPECT_EQ(r.ax & 0x20, 0x20);
    r = v86(0);
    RUNV(&r, "mov dx, 0x3fd; in ax, dx"); /* the next port is forbidden */
    TRAPPED(&r, V_GP, 0, 3);
}

TEST(io_bitmap_of_user_code)
{
    tss.map[0x3fd / 8] &= ~(1 << 5);
    struct regs r = user_regs();
    RUN(&r, "mov dx, 0x3fd; in al, dx");
    DONE(&r);
    r = user_regs();
    RUN(&r, "mov dx, 0x3fc; in al, dx");
    TRAPPED(&r, V_GP, 0, 4);
    r = user_regs();
    r.flags |= F_IOPL(3);
    RUN(&r, "mov dx, 0x3fc; in al, dx");
    DONE(&r);
    /* a bitmap cut by the TSS limit: what is beyond is forbidden */
    u16 limit = offsetof(struct tss, map) + 0x3fd / 8; /* the second byte of the check is outside */
    set_gdt(TSS_SEL, descriptor((word)&tss, limit, 0x89, 0));
    asm volatile("ltr %w0" : : "r"(TSS_SEL));
    r = user_regs();
    RUN(&r, "mov dx, 0x3fd; in al, dx");
    TRAPPED(&r, V_GP, 0, 4);
    set_gdt(TSS_SEL, descriptor((word)&tss, limit + 1, 0x89, 0));
    asm volatile("ltr %w0" : : "r"(TSS_SEL));
    r = user_regs();
    RUN(&r, "mov dx, 0x3fd; in al, dx");
    DONE(&r);
    tss.iomap = 0xffff;
    r = user_regs();
    RUN(&r, "mov dx, 0x3fd; in al, dx");
    TRAPPED(&r, V_GP, 0, 4);
}

TEST(vme_redirection)
{
    NEED(HAS_VME);
    write_cr4(CR4_VME);
    u32 *ivt = (u32 *)0;
    asm("" : "+r"(ivt));
    u32 before = ivt[0x60];
    ivt[0x60] = SEG << 16 | 0x40;
    u8 *to = LOW(SEG, 0x40);
    asm("" : "+r"(to));
    memcpy(to, CODE16("pop ax; pop bx; pop cx; pushf; pop dx; .byte 0x0f, 0x0b"), 16);
    tss.redirect[0x60 / 8] &= ~(1 << (0x60 % 8)); /* to the 8086 program's own handler */
    struct regs r = v86(3);
    r.flags |= F_IF | F_CF;
    RUNV(&r, "int 0x60");
    if (TRAPPED(&r, V_UD, 0, -1)) {
        EXPECT_EQ(r.ax & 0xffff, 2); /* return IP */
        EXPECT_EQ(r.bx & 0xffff, SEG);
        EXPECT_EQ(r.cx & (F_IF | F_CF | F_IOPL(3)), F_IF | F_CF | F_IOPL(3));
        EXPECT_EQ(r.flags & F_IF, 0);
    }
    r = v86(0); /* IOPL 0: works on VIF; the pushed image shows IOPL 3 and VIF as IF */
    r.flags |= F_IF | F_VIF;
    RUNV(&r, "int 0x60");
    if (TRAPPED(&r, V_UD, 0, -1)) {
        EXPECT_EQ(r.cx & (F_IF | F_IOPL(3)), F_IF | F_IOPL(3));
        EXPECT_EQ(r.flags & F_VIF, 0);
        EXPECT_EQ(r.flags & F_IF, F_IF);
    }
    tss.redirect[0x60 / 8] |= 1 << (0x60 % 8);
    r = v86(0);
    RUNV(&r, "int 0x60"); /* bit set, IOPL < 3: #GP(0) */
    TRAPPED(&r, V_GP, 0, 0);
    set_gate(0x60, KCS, STUB(0x60), GATE_INT | 0x60, 0);
    r = v86(3);
    RUNV(&r, "int 0x60"); /* bit set, IOPL 3: the protected IDT */
    TRAPPED(&r, 0x60, 0, 2);
    ivt[0x60] = before;
}

TEST(vme_virtual_interrupt_flag)
{
    NEED(HAS_VME);
    write_cr4(CR4_VME);
    struct regs r = v86(0);
    r.flags |= F_IF;
    RUNV(&r, "sti; pushf; pop ax; cli; pushf; pop bx; hlt");
    if (TRAPPED(&r, V_GP, 0, 6)) {
        EXPECT_EQ(r.ax & (F_IF | F_IOPL(3)), F_IF | F_IOPL(3));
        EXPECT_EQ(r.bx & (F_IF | F_IOPL(3)), F_IOPL(3));
        EXPECT_EQ(r.flags & (F_IF | F_VIF), F_IF);
    }
    r = v86(0);
    r.flags |= F_IF | F_VIP;
    RUNV(&r, "nop; sti"); /* a pending virtual interrupt: #GP */
    TRAPPED(&r, V_GP, 0, 1);
    r = v86(0);
    r.flags |= F_IF;
    RUNV(&r, "push 0x0202; popf; hlt"); /* POPF with IF sets VIF */
    if (TRAPPED(&r, V_GP, 0, 4))
        EXPECT_EQ(r.flags & (F_IF | F_VIF), F_IF | F_VIF);
    r = v86(0);
    RUNV(&r, "push 0x0302; popf"); /* POPF that would set TF: #GP */
    TRAPPED(&r, V_GP, 0, 3);
    r = v86(0);
    RUNV(&r, "pushfd"); /* the 32-bit forms stay IOPL-sensitive */
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(protected_mode_virtual_interrupts)
{
    NEED(HAS_VME);
    write_cr4(CR4_PVI);
    struct regs r = user_regs();
    r.flags |= F_IF;
    RUN(&r, "sti; hlt");
    if (TRAPPED(&r, V_GP, 0, 1))
        EXPECT_EQ(r.flags & F_VIF, F_VIF);
    r = user_regs();
    r.flags |= F_IF | F_VIF;
    RUN(&r, "cli; hlt");
    if (TRAPPED(&r, V_GP, 0, 1))
        EXPECT_EQ(r.flags & (F_VIF | F_IF), F_IF);
    r = user_regs();
    r.flags |= F_IF | F_VIP;
    RUN(&r, "sti");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(popf_in_protected_mode_by_privilege)
{
    struct regs r = user_regs(); /* CPL 3, IOPL 0: IF and IOPL stay, silently */
    r.flags |= F_IF;
    RUN(&r, "push 0x3002; popfd");
    if (DONE(&r))
        EXPECT_EQ(r.flags & (F_IF | F_IOPL(3)), F_IF);
    r = user_regs(); /* IOPL 3: IF changes, IOPL stays */
    r.flags |= F_IF | F_IOPL(3);
    RUN(&r, "push 0x0002; popfd");
    if (DONE(&r))
        EXPECT_EQ(r.flags & (F_IF | F_IOPL(3)), F_IOPL(3));
    r = user_regs();
    r.flags |= F_IOPL(3);
    RUN(&r, "sti; cli");
    DONE(&r);
    r = user_regs();
    r.flags |= F_IOPL(2);
    RUN(&r, "sti");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    RUN(&r, "push 0x3202; popfd; cli");
    if (DONE(&r))
        EXPECT_EQ(r.flags & F_IOPL(3), F_IOPL(3));
    r = kernel_regs(); /* POPFD never sets VM, nor RF */
    r.ax = 2 | F_VM | F_RF | F_CF;
    RUN(&r, "push eax; popfd");
    if (DONE(&r))
        EXPECT_EQ(r.flags & (F_VM | F_RF | F_CF), F_CF);
    r = kernel_regs(); /* reserved bits: 1 is one, 3, 5, 15 zero */
    RUN(&r, "push 0xffffbcff; popf; pushf; pop ax; push 0; popf");
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0x802a, 2);
}
