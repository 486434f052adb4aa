/* What only 16- and 32-bit code has, and the forms of operand and address size.
 * SDM vol. 2: AAA, AAD, AAM, AAS, DAA, DAS, BOUND, INTO, PUSHA, POPA, LES, ARPL, ENTER, SALC. */
#include "guest.h"

struct bcd {
    u16 ax, want;
    u8 flags, want_flags; /* CF and AF */
};
#define AF 0x10

static void table(const char *name, const void *code, const struct bcd *t, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        struct regs r = kernel_regs();
        r.ax = t[i].ax;
        r.flags |= t[i].flags;
        run_at(&r, code);
        if (!DONE(&r))
            return;
        if ((r.ax & 0xffff) != t[i].want || (r.flags & (F_CF | AF)) != t[i].want_flags)
            fail("%s %x flags %x: %lx flags %lx, want %x flags %x", name, t[i].ax, t[i].flags, r.ax, r.flags & (F_CF | AF),
                 t[i].want, t[i].want_flags);
    }
}
#define TABLE(body, ...)                                              \
    do {                                                              \
        static const struct bcd list_[] = {__VA_ARGS__};              \
        table(body, CODE(body), list_, sizeof list_ / sizeof list_[0]); \
    } while (0)

TEST(decimal_adjust)
{
    TABLE("daa", {0x0000, 0x0000, 0, 0}, {0x000a, 0x0010, 0, AF}, {0x009a, 0x0000, 0, F_CF | AF},
          {0x00ff, 0x0065, 0, F_CF | AF}, {0x0012, 0x0018, AF, AF}, {0x0020, 0x0080, F_CF, F_CF},
          {0x00a0, 0x0000, 0, F_CF}, {0x0099, 0x0099, 0, 0});
    TABLE("das", {0x0000, 0x0000, 0, 0}, {0x000a, 0x0004, 0, AF}, {0x00ee, 0x0088, AF, F_CF | AF},
          {0x009a, 0x0034, 0, F_CF | AF}, {0x0020, 0x00c0, F_CF, F_CF}, {0x0003, 0x00fd, AF, F_CF | AF});
    TABLE("aaa", {0x0005, 0x0005, 0, 0}, {0x000b, 0x0101, 0, F_CF | AF}, {0x00fa, 0x0200, 0, F_CF | AF},
          {0x0100, 0x0206, AF, F_CF | AF}, {0xff0f, 0x0005, 0, F_CF | AF}, {0x00f9, 0x0009, 0, 0});
    TABLE("aas", {0x0005, 0x0005, 0, 0}, {0x020b, 0x0105, 0, F_CF | AF}, {0x0100, 0xff0a, AF, F_CF | AF},
          {0x0203, 0x000d, AF, F_CF | AF});
}

TEST(aam_and_aad)
{
    struct regs r = kernel_regs();
    r.ax = 0x1263;
    RUN(&r, "aam");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 0x0909);
    r = kernel_regs();
    r.ax = 0x00ff;
    RUN(&r, ".byte 0xd4, 16");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 0x0f0f);
    r = kernel_regs();
    RUN(&r, ".byte 0xd4, 0"); /* a divisor of 0 */
    TRAPPED(&r, V_DE, 0, 0);
    r = kernel_regs();
    r.ax = 0x0909;
    RUN(&r, "aad");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 99);
        EXPECT_EQ(r.flags & (F_ZF | F_SF | F_PF), F_PF);
    }
    r = kernel_regs();
    r.ax = 0x0102;
    RUN(&r, ".byte 0xd5, 16");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 0x12);
}

TEST(salc)
{
    struct regs r = kernel_regs();
    r.flags |= F_CF;
    RUN(&r, ".byte 0xd6");
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0xff, 0xff);
    r = kernel_regs();
    r.ax = 0x55;
    RUN(&r, ".byte 0xd6");
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0xff, 0);
}

TEST(bound)
{
    static int limits[2] = {-5, 10};
    struct regs r = kernel_regs();
    r.bx = (word)limits;
    static const struct { int index, ok; } list[] = {{-5, 1}, {10, 1}, {0, 1}, {-6, 0}, {11, 0}};
    for (unsigned i = 0; i < 5; i++) {
        r = kernel_regs();
        r.bx = (word)limits, r.ax = (word)list[i].index;
        RUN(&r, "bound eax, [ebx]");
        if (list[i].ok)
            DONE(&r);
        else
            TRAPPED(&r, V_BR, 0, 0);
    }
    static short shorts[2] = {-1, 1};
    r = kernel_regs();
    r.bx = (word)shorts, r.ax = 0xffff;
    RUN(&r, "bound ax, [ebx]");
    DONE(&r);
    r = kernel_regs();
    RUN(&r, ".byte 0x62, 0xc0"); /* a register: no BOUND (EVEX needs more), #UD */
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(into)
{
    struct regs r = kernel_regs();
    RUN(&r, "into");
    DONE(&r);
    r = kernel_regs();
    r.flags |= F_OF;
    RUN(&r, "nop; into");
    TRAPPED(&r, V_OF, 0, 2); /* a trap */
    r = user_regs(); /* its gate's DPL counts */
    r.flags |= F_OF;
    RUN(&r, "nop; into");
    TRAPPED(&r, V_GP, V_OF * 8 + 2, 1);
}

TEST(pusha_and_popa)
{
    struct regs r = kernel_regs();
    r.ax = 1, r.cx = 2, r.dx = 3, r.bx = 4, r.bp = 6, r.si = 7, r.di = 8;
    word sp = r.sp;
    RUN(&r, "pushad; add dword ptr [esp+28], 0x100; xor ecx, ecx; mov dword ptr [esp+12], 0x666; popad");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x101);
        EXPECT_EQ(r.cx, 2);
        EXPECT_EQ(r.di, 8);
        EXPECT_EQ(r.sp, sp); /* the stored ESP is not loaded */
    }
    r = kernel_regs();
    RUN(&r, "mov ecx, esp; pushad; mov eax, [esp+12]; sub eax, ecx; mov ebx, eax; add esp, 32");
    if (DONE(&r))
        EXPECT_EQ(r.bx, 0); /* and it is ESP from before */
    r = kernel_regs();
    r.ax = 0xaaaa1111, r.di = 0xbbbb2222;
    RUN(&r, "pushaw; mov word ptr [esp], 0x3333; popaw");
    if (DONE(&r)) {
        EXPECT_EQ(r.di, 0xbbbb3333);
        EXPECT_EQ(r.sp, sp);
    }
}

TEST(pusha_faults_whole)
{
    set_gdt(TEST_SEL, descriptor((word)new_page(), 0xfff, 0xf3, DB));
    struct regs r = user_regs();
    r.ss = TEST_SEL | 3;
    r.sp = 0x10; /* the fifth push is beyond the segment */
    RUN(&r, "pushad");
    TRAPPED(&r, V_SS, 0, 0);
    EXPECT_EQ(r.sp, 0x10);
    r = user_regs();
    r.ss = TEST_SEL | 3;
    r.sp = 0xff0;
    r.ax = 5;
    RUN(&r, "popad");
    TRAPPED(&r, V_SS, 0, 0);
    EXPECT_EQ(r.ax, 5);
    EXPECT_EQ(r.sp, 0xff0);
}

TEST(enter_with_nesting)
{
    struct regs r = kernel_regs();
    u32 *stack = (u32 *)r.sp;
    r.bp = (word)(stack + 16);
    stack[15] = 0x111, stack[14] = 0x222;
    word sp = r.sp;
    RUN(&r, "enter 8, 3");
    if (DONE(&r)) {
        EXPECT_EQ(r.bp, sp - 4);
        EXPECT_EQ(r.sp, sp - 4 - 12 - 8);
        EXPECT_EQ(stack[-1], (word)(stack + 16)); /* the old frame pointer */
        EXPECT_EQ(stack[-2], 0x111);              /* the display */
        EXPECT_EQ(stack[-3], 0x222);
        EXPECT_EQ(stack[-4], sp - 4);
    }
}

TEST(operand_size_16)
{
    struct regs r = kernel_regs();
    r.ax = 0x12345678, r.bx = 0x9abc0001;
    word sp = r.sp;
    RUN(&r, "add ax, bx; push ax; inc bx; pop cx; cwd; movzx edx, ax");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x12345679);
        EXPECT_EQ(r.bx, 0x9abc0002);
        EXPECT_EQ(r.cx & 0xffff, 0x5679);
        EXPECT_EQ(r.dx, 0x5679);
        EXPECT_EQ(r.sp, sp);
    }
}

TEST(address_size_16)
{
    u8 *low = (u8 *)0x8000;
    asm("" : "+r"(low));
    low[0x123] = 0x42;
    struct regs r = kernel_regs();
    r.bx = 0xffff8000, r.si = 0xabcd0123; /* only the lower halves count, and their sum wraps */
    RUN(&r, "mov al, [bx+si]; mov cl, [bx+si+0x10]; lea edx, [bx+si]; mov ah, [0x8123]");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax & 0xff, 0x42);
        EXPECT_EQ(r.dx, 0x8123);
    }
    r = kernel_regs();
    r.bx = 0xfff0, r.si = 0x20;
    low = (u8 *)0x10;
    asm("" : "+r"(low));
    u8 saved = *low;
    *low = 0x77;
    RUN(&r, "mov al, [bx+si]");
    *low = saved;
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0xff, 0x77);
    r = kernel_regs();
    r.cx = 0x50000;
    RUN(&r, "mov eax, 1; .byte 0x67, 0xe3, 5; mov eax, 2"); /* JCXZ by CX */
    if (DONE(&r))
        EXPECT_EQ(r.ax, 1);
    r = kernel_regs();
    r.cx = 0x50002;
    RUN(&r, "1: inc eax; .byte 0x67; loop 1b"); /* LOOP by CX: twice */
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 2);
        EXPECT_EQ(r.cx, 0x50000);
    }
}

TEST(sixteen_bit_strings_wrap)
{
    u8 *segment = (u8 *)0x20000;
    asm("" : "+r"(segment));
    memset(segment, 0, 0x10000);
    set_gdt(TEST_SEL, descriptor(0x20000, 0xffff, 0x93, 0));
    struct regs r = kernel_regs();
    r.es = TEST_SEL;
    r.di = 0x1234fffe, r.cx = 0x56780004, r.ax = 0x99;
    RUN(&r, ".byte 0x67; rep stosb");
    if (DONE(&r)) {
        EXPECT_EQ(r.di, 0x12340002);
        EXPECT_EQ(r.cx, 0x56780000);
        EXPECT_EQ(segment[0xffff] == 0x99 && segment[0] == 0x99 && segment[1] == 0x99 && segment[2] == 0, 1);
    }
    r = kernel_regs(); /* a word at 0xffff is beyond the limit */
    r.es = TEST_SEL;
    r.di = 0xfffd, r.cx = 4;
    RUN(&r, ".byte 0x67; rep stosw");
    TRAPPED(&r, V_GP, 0, 0);
    EXPECT_EQ(r.cx & 0xffff, 3);
    EXPECT_EQ(r.di & 0xffff, 0xffff);
}

TEST(near_transfers_with_16_bit_operand)
{
    /* A 16-bit near jump truncates EIP to 16 bits: run it where that is a valid address. */
    u8 *low = (u8 *)0x8000;
    asm("" : "+r"(low));
    memcpy(low, "\x66\xe9\x02\x00\x0f\x0b\xb0\x21\xcd\x81", 10); /* jmp16 over UD2 */
    struct regs r = kernel_regs();
    run_at(&r, low);
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0xff, 0x21);
    r = kernel_regs();
    word sp = r.sp;
    memcpy(low, "\x66\xe8\x02\x00\x0f\x0b\x58\xcd\x81", 9); /* call16; pop eax takes 2 + 2 bytes */
    run_at(&r, low);
    if (DONE(&r)) {
        EXPECT_EQ(r.ax & 0xffff, 0x8004);
        EXPECT_EQ(r.sp, sp + 2);
    }
}

TEST(lock_and_undefined_in_32_bit)
{
    static const struct { const char *what; u8 code[6]; } list[] = {
        {"syscall without SCE", {0x0f, 0x05}}, {"lds of a register", {0xc5, 0xc0}}, {"movsxd is arpl: lock", {0xf0, 0x63, 0xc0}},
        {"swapgs", {0x0f, 0x01, 0xf8}}, {"lock inc eax", {0xf0, 0x40}}, {"ud0", {0x0f, 0xff, 0xc0}}};
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct regs r = kernel_regs();
        run_at(&r, list[i].code);
        if (r.vector != V_UD)
            fail("%s: vector %ld", list[i].what, r.vector);
    }
}

TEST(one_byte_inc_dec_keep_cf)
{
    struct regs r = kernel_regs();
    r.flags |= F_CF;
    r.ax = 0x7fffffff;
    RUN(&r, ".byte 0x40");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, 0x80000000);
        EXPECT_EQ(r.flags & (F_CF | F_OF | F_SF), F_CF | F_OF | F_SF);
    }
}

TEST(sahf_lahf_and_pushf_forms)
{
    struct regs r = kernel_regs();
    r.ax = 0xff00;
    RUN(&r, "sahf; lahf");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax >> 8 & 0xff, 0xd7);
        EXPECT_EQ(r.flags & 0xff, 0xd7);
    }
    r = kernel_regs();
    r.flags |= F_AC | F_ID;
    word sp = r.sp;
    RUN(&r, ".byte 0x66, 0x9c, 0x66, 0x9d; pushfd; pop eax");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax & (F_AC | F_ID), F_AC | F_ID);
        EXPECT_EQ(r.sp, sp);
    }
}
