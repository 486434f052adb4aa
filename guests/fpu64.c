/* x87, MMX, SSE and AVX as far as they are privileged matters: #MF, #XM, #NM and #UD rules, the
 * XSAVE family and its components.
 * SDM vol. 1 chapters 8.7, 11.5, 13 (XSAVE); vol. 3 tables 14-1, 2-1; vol. 2. */
#include "guest.h"

static u8 area[2][1024] __attribute__((aligned(64)));
static u32 mxcsr;

static void sse_on(void) { write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT); }
static void xsave_on(u32 components)
{
    sse_on();
    write_cr4(read_cr4() | CR4_OSXSAVE);
    asm volatile("xsetbv" : : "a"(components), "c"(0), "d"(0));
}
static void set_mxcsr(u32 v)
{
    mxcsr = v;
    asm volatile("ldmxcsr %0" : : "m"(mxcsr));
}

TEST(mf_comes_with_the_next_instruction)
{
    static u16 control = 0x0360 & ~4; /* zero divide unmasked */
    asm volatile("fninit; fldcw %0" : : "m"(control));
    struct regs r = kernel_regs();
    RUN(&r, "fld1; fldz; fdivp st(1), st; nop; fld1");
    TRAPPED(&r, V_MF, 0, 7); /* at the next waiting instruction */
    r = kernel_regs();
    RUN(&r, "fnstsw ax; fnclex; fld1; fstp st(0)"); /* the non-waiting forms do not fault */
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0x84, 0x84); /* ES and ZE */
    asm volatile("fninit");
}

TEST(wait_reports_pending)
{
    static u16 control = 0x037f & ~4;
    asm volatile("fninit; fldcw %0" : : "m"(control));
    struct regs r = kernel_regs();
    RUN(&r, "fld1; fldz; fdivp st(1), st; wait");
    TRAPPED(&r, V_MF, 0, 6);
    r = kernel_regs();
    RUN(&r, "emms"); /* MMX instructions report it too */
    TRAPPED(&r, V_MF, 0, 0);
    asm volatile("fninit");
}

TEST(masked_x87_does_not_fault)
{
    asm volatile("fninit");
    struct regs r = kernel_regs();
    RUN(&r, "fld1; fldz; fdivp st(1), st; wait; fnstsw ax; fninit");
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0x84, 4);
}

TEST(xm_needs_osxmmexcpt)
{
    sse_on();
    set_mxcsr(0x1f80 & ~(1u << 9)); /* zero divide unmasked */
    struct regs r = kernel_regs();
    r.ax = 0x3f800000;
    RUN(&r, "movd xmm0, eax; xorps xmm1, xmm1; divss xmm0, xmm1");
    TRAPPED(&r, V_XM, 0, 7); /* a fault: the operands are as they were */
    asm volatile("stmxcsr %0" : "=m"(mxcsr));
    EXPECT_EQ(mxcsr & 0x3f, 4);
    write_cr4(read_cr4() & ~CR4_OSXMMEXCPT);
    r = kernel_regs();
    r.ax = 0x3f800000;
    RUN(&r, "movd xmm0, eax; xorps xmm1, xmm1; divss xmm0, xmm1");
    TRAPPED(&r, V_UD, 0, 7);
    set_mxcsr(0x1f80);
}

TEST(xm_leaves_the_destination)
{
    sse_on();
    set_mxcsr(0x1f80 & ~(1u << 7)); /* invalid unmasked */
    struct regs r = kernel_regs();
    r.ax = 0x7fa00000; /* a signalling NaN */
    RUN(&r, "movd xmm0, eax; movaps xmm1, xmm0; addss xmm0, xmm1");
    EXPECT_EQ(r.vector, V_XM);
    r = kernel_regs();
    RUN(&r, "movd eax, xmm0");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 0x7fa00000);
    set_mxcsr(0x1f80);
}

TEST(mxcsr_reserved_bits)
{
    sse_on();
    mxcsr = 0x10000;
    struct regs r = kernel_regs();
    r.bx = (word)&mxcsr;
    RUN(&r, "ldmxcsr [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    memset(area, 0, sizeof area);
    *(u32 *)(area[0] + 24) = 0x10000;
    r = kernel_regs();
    r.bx = (word)area[0];
    RUN(&r, "fxrstor [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(fxsave_layout)
{
    sse_on();
    memset(area, 0xee, sizeof area);
    struct regs r = kernel_regs();
    r.bx = (word)area[0];
    r.ax = 0x1122334455667788;
    RUN(&r, "fninit; fld1; movq xmm9, rax; fxsave64 [rbx]; fninit; xorps xmm9, xmm9; fxrstor64 [rbx]; movq rcx, xmm9; fnstsw ax");
    if (DONE(&r)) {
        EXPECT_EQ(*(u16 *)area[0], 0x37f);
        EXPECT_EQ(area[0][4], 0x80); /* abridged tag: one register full */
        EXPECT_EQ(*(u64 *)(area[0] + 160 + 9 * 16), 0x1122334455667788);
        EXPECT_EQ(*(u64 *)(area[0] + 32), 0x8000000000000000);
        EXPECT_EQ(r.cx, 0x1122334455667788);
        EXPECT_EQ(r.ax >> 11 & 7, 7);
    }
    r = kernel_regs();
    r.bx = (word)area[0] + 8; /* misaligned */
    RUN(&r, "fxsave [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    asm volatile("fninit");
}

TEST(nm_for_every_class)
{
    NEED(HAS_AVX && HAS_XSAVE);
    xsave_on(7);
    static const struct { const char *what; u8 code[8]; } list[] = {
        {"fld1", {0xd9, 0xe8}}, {"pxor mm0, mm0", {0x0f, 0xef, 0xc0}}, {"xorps", {0x0f, 0x57, 0xc0}},
        {"vxorps", {0xc5, 0xf8, 0x57, 0xc0}}, {"fxsave", {0x0f, 0xae, 0x03}}, {"xsave", {0x0f, 0xae, 0x23}},
        {"ldmxcsr", {0x0f, 0xae, 0x13}}, {"aesenc", {0x66, 0x0f, 0x38, 0xdc, 0xc1}}};
    write_cr0(read_cr0() | CR0_TS);
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        u8 *page = new_page();
        memcpy(page, list[i].code, 8);
        struct regs r = kernel_regs();
        r.bx = (word)area[0];
        run_at(&r, page);
        if (r.vector != V_NM || r.ip != r.start)
            fail("%s: vector %ld", list[i].what, r.vector);
    }
}

TEST(avx_needs_xcr0_and_osxsave)
{
    NEED(HAS_AVX && HAS_XSAVE);
    sse_on();
    struct regs r = kernel_regs();
    RUN(&r, "vxorps xmm0, xmm0, xmm0"); /* OSXSAVE clear */
    TRAPPED(&r, V_UD, 0, 0);
    xsave_on(3);
    r = kernel_regs();
    RUN(&r, "vxorps xmm0, xmm0, xmm0"); /* XCR0.AVX clear */
    TRAPPED(&r, V_UD, 0, 0);
    xsave_on(7);
    r = kernel_regs();
    RUN(&r, "vxorps xmm0, xmm0, xmm0");
    DONE(&r);
    r = kernel_regs();
    r.bx = (word)area[0] + 16;
    RUN(&r, "vmovaps ymm0, [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.bx = (word)area[0] + 1;
    RUN(&r, "vmovups ymm0, [rbx]");
    DONE(&r);
    r = kernel_regs();
    RUN(&r, ".byte 0xf3, 0xc5, 0xf8, 0x57, 0xc0"); /* a legacy prefix before VEX */
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(xsave_rules)
{
    NEED(HAS_XSAVE);
    sse_on();
    struct regs r = kernel_regs();
    r.bx = (word)area[0], r.ax = 7;
    RUN(&r, "xsave [rbx]");
    TRAPPED(&r, V_UD, 0, 0); /* OSXSAVE clear */
    xsave_on(3);
    r = kernel_regs();
    r.bx = (word)area[0] + 16, r.ax = 7;
    RUN(&r, "xsave [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    memset(area, 0, sizeof area);
    r = kernel_regs();
    r.bx = (word)area[0], r.ax = 7, r.dx = ~0ul;
    RUN(&r, "fninit; fld1; xsave [rbx]");
    if (DONE(&r))
        EXPECT_EQ(*(u64 *)(area[0] + 512) & ~3ull, 0); /* XSTATE_BV within XCR0 */
    *(u64 *)(area[0] + 512) = 1ull << 2; /* a component that XCR0 does not have */
    r = kernel_regs();
    r.bx = (word)area[0], r.ax = 7;
    RUN(&r, "xrstor [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    *(u64 *)(area[0] + 512) = 3;
    area[0][528] = 1; /* header bytes that must be zero */
    r = kernel_regs();
    r.bx = (word)area[0], r.ax = 7;
    RUN(&r, "xrstor [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    asm volatile("fninit");
}

TEST(xsave_and_xrstor_move_state)
{
    NEED(HAS_XSAVE && HAS_AVX);
    xsave_on(7);
    memset(area, 0, sizeof area);
    u32 out[4];
    cpuid(0xd, 0, out);
    EXPECT_EQ(out[1], 832); /* size for XCR0 */
    cpuid(0xd, 2, out);
    EXPECT_EQ(out[0], 256);
    EXPECT_EQ(out[1], 576);
    struct regs r = kernel_regs();
    r.bx = (word)area[0], r.ax = 7;
    r.cx = 0xabcdef;
    RUN(&r, "vzeroall; movq xmm3, rcx; vinsertf128 ymm3, ymm3, xmm3, 1; xsave [rbx]; vzeroall; xrstor [rbx]; vextractf128 xmm4, ymm3, 1; movq rdx, xmm4; movq rsi, xmm3");
    if (DONE(&r)) {
        EXPECT_EQ(r.dx, 0xabcdef);
        EXPECT_EQ(r.si, 0xabcdef);
        EXPECT_EQ(*(u64 *)(area[0] + 576 + 3 * 16), 0xabcdef);
        EXPECT_EQ(*(u64 *)(area[0] + 512) & 6, 6);
    }
    /* A clear bit in XSTATE_BV initializes the component. */
    *(u64 *)(area[0] + 512) &= ~4ull;
    r = kernel_regs();
    r.bx = (word)area[0], r.ax = 7;
    RUN(&r, "xrstor [rbx]; vextractf128 xmm4, ymm3, 1; movq rdx, xmm4; movq rsi, xmm3");
    if (DONE(&r)) {
        EXPECT_EQ(r.dx, 0);
        EXPECT_EQ(r.si, 0xabcdef);
    }
    /* Only what EDX:EAX asks for is touched. */
    r = kernel_regs();
    r.bx = (word)area[0], r.ax = 1, r.cx = 0x77;
    RUN(&r, "movq xmm3, rcx; xrstor [rbx]; movq rsi, xmm3");
    if (DONE(&r))
        EXPECT_EQ(r.si, 0x77);
}

TEST(xsavec_compacts)
{
    NEED(HAS_XSAVE && HAS_AVX && HAS_XSAVEC);
    xsave_on(7);
    memset(area, 0, sizeof area);
    struct regs r = kernel_regs();
    r.bx = (word)area[0], r.ax = 7, r.cx = 0x1234;
    RUN(&r, "vzeroall; movq xmm0, rcx; vinsertf128 ymm0, ymm0, xmm0, 1; xsavec [rbx]; vzeroall; xrstor [rbx]; vextractf128 xmm1, ymm0, 1; movq rdx, xmm1");
    if (DONE(&r)) {
        EXPECT_EQ(r.dx, 0x1234);
        EXPECT_EQ(*(u64 *)(area[0] + 520), 1ull << 63 | 7); /* XCOMP_BV */
    }
    *(u64 *)(area[0] + 520) = 1ull << 63 | 1; /* XSTATE_BV beyond XCOMP_BV */
    r = kernel_regs();
    r.bx = (word)area[0], r.ax = 7;
    RUN(&r, "xrstor [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(sse_faults_on_memory_restart)
{
    sse_on();
    struct regs r = kernel_regs();
    r.bx = TEST_VA + 0xff8;
    map_page(TEST_VA, (word)new_page(), P_P | P_W | P_U, 1);
    RUN(&r, "movups xmm0, [rbx]");
    TRAPPED(&r, V_PF, 0, 0);
    EXPECT_EQ(r.cr2, TEST_VA + 0x1000);
    r = kernel_regs();
    r.bx = TEST_VA + 0xff8;
    RUN(&r, "movups [rbx], xmm0");
    TRAPPED(&r, V_PF, PF_W, 0);
    r = kernel_regs();
    r.bx = TEST_VA + 0xe00;
    RUN(&r, "fxsave [rbx]"); /* its end is in the hole... exactly at the edge it is not */
    DONE(&r);
    r = kernel_regs();
    r.bx = TEST_VA + 0xe80; /* what it writes reaches 416 bytes far at least */
    RUN(&r, "fxsave [rbx]");
    TRAPPED(&r, V_PF, PF_W, 0);
}

TEST(mmx_marks_the_tags)
{
    asm volatile("fninit");
    memset(area, 0, sizeof area);
    struct regs r = kernel_regs();
    r.bx = (word)area[0], r.ax = 0x55;
    RUN(&r, "movd mm2, eax; fnstenv [rbx]; emms; fnstenv [rbx+64]; fnstsw ax; mov ecx, eax");
    if (DONE(&r)) {
        EXPECT_EQ(*(u16 *)(area[0] + 8) >> 4 & 3, 2); /* MM2: valid, read as special */
        EXPECT_EQ(*(u16 *)(area[0] + 72), 0xffff);
        EXPECT_EQ(r.cx >> 11 & 7, 0);
    }
    asm volatile("fninit");
}

TEST(fp_state_survives_traps)
{
    /* An exception and the handler's integer code leave XMM and x87 as they were. */
    sse_on();
    asm volatile("fninit");
    struct regs r = kernel_regs();
    r.ax = 0x1234567;
    RUN(&r, "movq xmm7, rax; fldpi; ud2");
    EXPECT_EQ(r.vector, V_UD);
    r = kernel_regs();
    RUN(&r, "fldpi; fcompp; fnstsw ax; mov ecx, eax; movq rax, xmm7");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x1234567);
        EXPECT_EQ(r.cx & 0x4000, 0x4000);
    }
    asm volatile("fninit");
}
