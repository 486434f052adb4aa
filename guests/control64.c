/* Control registers, EFER, XCR0 and MSRs: illegal combinations; the sensitive but unprivileged
 * instructions; CPUID, RDTSC, RDPMC.
 * SDM vol. 3 sections 2.5, 4.1, 5.10.1; vol. 2 MOV CR, SMSW, SGDT, RDTSC. */
#include "guest.h"

static struct regs set_cr(int n, word value)
{
    struct regs r = kernel_regs();
    r.ax = value;
    switch (n) {
    case 0: RUN(&r, "mov cr0, rax"); break;
    case 3: RUN(&r, "mov cr3, rax"); break;
    case 4: RUN(&r, "mov cr4, rax"); break;
    default: RUN(&r, "mov cr8, rax"); break;
    }
    return r;
}
static void refused(int n, word value, int line)
{
    struct regs r = set_cr(n, value);
    if (!trapped_at(&r, V_GP, 0, 0, line))
        put("(CR%d 0x%lx)\n", n, value);
}
#define REFUSED(n, value) refused(n, value, __LINE__)

TEST(cr0_illegal)
{
    word cr0 = read_cr0();
    REFUSED(0, cr0 & ~(word)CR0_PE);           /* PG without PE */
    REFUSED(0, (cr0 | CR0_NW) & ~(word)CR0_CD); /* NW without CD */
    REFUSED(0, cr0 | 1ul << 32);                /* the upper half */
    REFUSED(0, cr0 & ~(word)CR0_PG);           /* PG in 64-bit mode */
    EXPECT_EQ(read_cr0(), cr0);
    struct regs r = set_cr(0, cr0 | 1u << 6); /* reserved bits of the lower half are ignored */
    DONE(&r);
    EXPECT_EQ(read_cr0(), cr0);
    r = set_cr(0, cr0 & ~(word)CR0_ET);
    DONE(&r);
    EXPECT_EQ(read_cr0() & CR0_ET, CR0_ET); /* hard-wired */
    r = set_cr(0, cr0 | CR0_CD);
    DONE(&r);
    EXPECT_EQ(read_cr0() & CR0_CD, CR0_CD);
    write_cr0(cr0);
}

TEST(cr3_illegal)
{
    word cr3 = read_cr3();
    REFUSED(3, cr3 | 1ul << 63);
    if (maxphyaddr() < 52)
        REFUSED(3, cr3 | 1ul << 51);
    struct regs r = set_cr(3, cr3 | 0x18); /* PWT, PCD */
    DONE(&r);
    EXPECT_EQ(read_cr3(), cr3 | 0x18);
    write_cr3(cr3);
}

TEST(cr4_illegal)
{
    word cr4 = read_cr4();
    REFUSED(4, cr4 & ~(word)CR4_PAE); /* in long mode */
    REFUSED(4, cr4 | 1ul << 15);
    REFUSED(4, cr4 | 1ul << 63);
    REFUSED(4, cr4 ^ CR4_LA57); /* in long mode */
    if (!HAS_PKU)
        REFUSED(4, cr4 | CR4_PKE);
    EXPECT_EQ(read_cr4(), cr4);
    struct regs r = set_cr(4, cr4 | CR4_TSD | CR4_DE | CR4_PSE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT);
    DONE(&r);
    EXPECT_EQ(read_cr4() ^ cr4, CR4_TSD | CR4_DE | CR4_PSE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT);
    write_cr4(cr4);
}

TEST(cr8_is_the_task_priority)
{
    struct regs r = set_cr(8, 0x10);
    TRAPPED(&r, V_GP, 0, 0);
    r = set_cr(8, 5);
    DONE(&r);
    EXPECT_EQ(apic_read(0x80), 0x50);
    apic_write(0x80, 0x70);
    r = kernel_regs();
    RUN(&r, "mov rax, cr8");
    if (DONE(&r))
        EXPECT_EQ(r.ax, 7);
    apic_write(0x80, 0);
}

TEST(efer_illegal)
{
    u64 efer = rdmsr(MSR_EFER);
    struct regs r = kernel_regs();
    r.cx = MSR_EFER, r.ax = (word)(efer & ~EFER_LME);
    RUN(&r, "xor edx, edx; wrmsr"); /* LME while paging is on */
    TRAPPED(&r, V_GP, 0, 2);
    r = kernel_regs();
    r.cx = MSR_EFER, r.ax = (word)(efer | 2);
    RUN(&r, "xor edx, edx; wrmsr"); /* a reserved bit */
    TRAPPED(&r, V_GP, 0, 2);
    EXPECT_EQ(rdmsr(MSR_EFER), efer);
    EXPECT_EQ(efer & EFER_LMA, EFER_LMA);
    r = kernel_regs();
    r.cx = MSR_EFER, r.ax = (word)(efer & ~EFER_LMA);
    RUN(&r, "xor edx, edx; wrmsr"); /* LMA is read-only: ignored (Intel), or refused */
    EXPECT(r.vector == V_DONE || r.vector == V_GP);
    EXPECT_EQ(rdmsr(MSR_EFER), efer);
}

TEST(unknown_msr_is_gp)
{
    struct regs r = kernel_regs();
    r.cx = 0x12345678;
    RUN(&r, "rdmsr");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.cx = 0x12345678;
    RUN(&r, "wrmsr");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.cx = 0xfe | 1ul << 32; /* only ECX counts: MTRRcap, read-only */
    RUN(&r, "rdmsr");
    DONE(&r);
    r = kernel_regs();
    r.cx = 0xfe;
    RUN(&r, "wrmsr");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(pat_and_mtrr_values)
{
    u64 pat = rdmsr(0x277);
    EXPECT_EQ(pat, 0x0007040600070406);
    struct regs r = kernel_regs();
    r.cx = 0x277, r.ax = 2; /* type 2 is reserved */
    RUN(&r, "xor edx, edx; wrmsr");
    TRAPPED(&r, V_GP, 0, 2);
    r = kernel_regs();
    r.cx = 0x277, r.ax = 8;
    RUN(&r, "xor edx, edx; wrmsr");
    TRAPPED(&r, V_GP, 0, 2);
    wrmsr(0x277, 0x0007010600070106);
    EXPECT_EQ(rdmsr(0x277), 0x0007010600070106);
    wrmsr(0x277, pat);
    r = kernel_regs();
    r.cx = 0x2ff, r.ax = 2; /* MTRRdefType: a reserved type */
    RUN(&r, "xor edx, edx; wrmsr");
    TRAPPED(&r, V_GP, 0, 2);
}

TEST(rdmsr_zero_extends)
{
    struct regs r = kernel_regs();
    r.ax = r.dx = ~0ul, r.cx = MSR_EFER;
    RUN(&r, "rdmsr");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, rdmsr(MSR_EFER));
        EXPECT_EQ(r.dx, 0);
    }
}

TEST(xcr0_rules)
{
    NEED(HAS_XSAVE);
    struct regs r = kernel_regs();
    RUN(&r, "xgetbv"); /* without OSXSAVE */
    TRAPPED(&r, V_UD, 0, 0);
    u32 out[4];
    cpuid(1, 0, out);
    EXPECT_EQ(out[2] >> 27 & 1, 0);
    write_cr4(read_cr4() | CR4_OSXSAVE);
    cpuid(1, 0, out);
    EXPECT_EQ(out[2] >> 27 & 1, 1); /* CPUID shows CR4.OSXSAVE */
    static const struct { u32 value; int ok; } list[] = {{1, 1}, {3, 1}, {0, 0}, {2, 0}, {5, 0}, {7, 1}, {1 | 1u << 30, 0}};
    for (unsigned i = 0; i < sizeof list / sizeof list[0]; i++) {
        if (list[i].value == 7 && !HAS_AVX)
            continue;
        r = kernel_regs();
        r.ax = list[i].value;
        RUN(&r, "xsetbv; xgetbv");
        if (list[i].ok) {
            if (DONE(&r))
                EXPECT_EQ(r.ax, list[i].value);
        } else {
            TRAPPED(&r, V_GP, 0, 0);
        }
    }
    r = kernel_regs();
    r.ax = 1, r.cx = 1;
    RUN(&r, "xsetbv");
    TRAPPED(&r, V_GP, 0, 0);
    r = user_regs();
    r.ax = 1;
    RUN(&r, "xsetbv");
    TRAPPED(&r, V_GP, 0, 0);
    r = user_regs();
    RUN(&r, "xgetbv");
    DONE(&r);
    r = kernel_regs();
    r.ax = 1;
    RUN(&r, "xsetbv");
}

TEST(smsw_and_lmsw)
{
    struct regs r = user_regs();
    RUN(&r, "smsw rax; smsw ebx");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax, read_cr0());
        EXPECT_EQ(r.bx, (u32)read_cr0());
    }
    u64 *page = new_page();
    page[0] = ~0ull;
    r = user_regs();
    r.di = (word)page;
    RUN(&r, "smsw [rdi]"); /* memory: always 16 bits */
    if (DONE(&r))
        EXPECT_EQ(page[0], 0xffffffffffff0000 | (read_cr0() & 0xffff));
    r = kernel_regs();
    r.ax = CR0_TS | CR0_EM; /* PE stays set; only bits 0-3 */
    RUN(&r, "lmsw ax");
    DONE(&r);
    EXPECT_EQ(read_cr0() & 0xf, CR0_PE | CR0_TS | CR0_EM);
    r = kernel_regs();
    RUN(&r, "clts");
    DONE(&r);
    EXPECT_EQ(read_cr0() & 0xf, CR0_PE | CR0_EM);
}

TEST(table_registers_are_readable_without_umip)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {0, 0}, i = {0, 0};
    struct regs r = user_regs();
    r.di = (word)&g, r.si = (word)&i;
    RUN(&r, "sgdt [rdi]; sidt [rsi]; sldt eax; str rbx");
    if (DONE(&r)) {
        EXPECT_EQ(g.limit, sizeof gdt - 1);
        EXPECT_EQ(g.base, (word)gdt);
        EXPECT_EQ(i.limit, sizeof idt - 1);
        EXPECT_EQ(i.base, (word)idt);
        EXPECT_EQ(r.ax, 0);
        EXPECT_EQ(r.bx, TSS_SEL);
    }
    r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0x01, 0xc0"); /* a register operand: another instruction or #UD, never SGDT */
    EXPECT_EQ(r.vector, V_UD);
}

TEST(umip)
{
    NEED(HAS_UMIP);
    write_cr4(read_cr4() | CR4_UMIP);
    u64 *page = new_page();
    static const u8 list[][3] = {{0x0f, 0x01, 0x07}, {0x0f, 0x01, 0x0f}, {0x0f, 0x00, 0xc0}, {0x0f, 0x00, 0xc8}, {0x0f, 0x01, 0xe0}};
    for (unsigned i = 0; i < 5; i++) {
        u8 *code = new_page();
        memcpy(code, list[i], 3);
        code[3] = 0xcd, code[4] = V_DONE;
        struct regs r = user_regs();
        r.di = (word)page;
        run_at(&r, code);
        if (!TRAPPED(&r, V_GP, 0, 0))
            put("(entry %d)\n", i);
        r = kernel_regs();
        r.di = (word)page;
        run_at(&r, code);
        DONE(&r);
    }
}

TEST(lgdt_lidt_canonical)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) t = {0xff, 1ull << 56}; /* non-canonical in 57 bits too: the CPU's width counts */
    struct regs r = kernel_regs();
    r.di = (word)&t;
    RUN(&r, "lgdt [rdi]");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.di = (word)&t;
    RUN(&r, "lidt [rdi]");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(lldt_ltr_in_long_mode)
{
    struct regs r = kernel_regs();
    r.ax = LDT_SEL;
    RUN(&r, "lldt ax; sldt ebx");
    if (DONE(&r))
        EXPECT_EQ(r.bx, LDT_SEL);
    r = kernel_regs();
    r.ax = TSS_SEL;
    RUN(&r, "ltr ax"); /* busy */
    TRAPPED(&r, V_GP, TSS_SEL, 0);
    set_gdt16(TEST_SEL, 1ull << 56, 103, 0x89); /* non-canonical base */
    r = kernel_regs();
    r.ax = TEST_SEL;
    RUN(&r, "ltr ax");
    TRAPPED(&r, V_GP, TEST_SEL, 0);
    set_gdt16(TEST_SEL, (word)&tss, 103, 0x81); /* a 16-bit TSS does not exist here */
    r = kernel_regs();
    r.ax = TEST_SEL;
    RUN(&r, "ltr ax");
    TRAPPED(&r, V_GP, TEST_SEL, 0);
    set_gdt16(TEST_SEL, (word)&tss, 103, 0x89);
    set_limits(TEST_SEL + 7, sizeof idt - 1); /* the upper half lies beyond the limit */
    r = kernel_regs();
    r.ax = TEST_SEL;
    RUN(&r, "ltr ax");
    TRAPPED(&r, V_GP, TEST_SEL, 0);
    set_limits(sizeof gdt - 1, sizeof idt - 1);
    r = kernel_regs();
    r.ax = TEST_SEL;
    RUN(&r, "ltr ax; str ebx");
    if (DONE(&r))
        EXPECT_EQ(r.bx, TEST_SEL);
    EXPECT_EQ(gdt[TEST_SEL / 8] >> 40 & 0xff, 0x8b);
}

TEST(rdtsc_and_tsd)
{
    struct regs r = user_regs();
    r.ax = r.dx = ~0ul;
    RUN(&r, "rdtsc; mov ebx, eax; mov ecx, edx; rdtsc");
    if (DONE(&r)) {
        EXPECT(((u64)r.dx << 32 | r.ax) >= ((u64)r.cx << 32 | r.bx));
        EXPECT_EQ(r.dx >> 32, 0);
    }
    write_cr4(read_cr4() | CR4_TSD);
    r = user_regs();
    RUN(&r, "rdtsc");
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    RUN(&r, "rdtsc");
    DONE(&r);
    NEED(HAS_RDTSCP);
    r = user_regs();
    RUN(&r, "rdtscp");
    TRAPPED(&r, V_GP, 0, 0);
    wrmsr(0xc0000103, 0x12345678);
    r = kernel_regs();
    RUN(&r, "rdtscp");
    if (DONE(&r))
        EXPECT_EQ(r.cx, 0x12345678);
    if (HAS_RDPID) {
        r = user_regs();
        RUN(&r, "rdpid rax");
        if (DONE(&r))
            EXPECT_EQ(r.ax, 0x12345678);
    }
}

TEST(tsc_is_writable_and_advances)
{
    u64 before = rdtsc();
    wrmsr(0x10, before + (1ull << 40));
    u64 after = rdtsc();
    EXPECT(after >= before + (1ull << 40) && after < before + (1ull << 41));
    wrmsr(0x10, after - (1ull << 40));
}

TEST(cpuid_shape)
{
    struct regs r = user_regs();
    r.ax = 0x80000000, r.cx = r.dx = r.bx = ~0ul;
    RUN(&r, "cpuid");
    if (DONE(&r)) {
        EXPECT(r.ax >= 0x80000008);
        EXPECT_EQ((r.ax | r.bx | r.cx | r.dx) >> 32, 0); /* zero-extended */
    }
    u32 top[4], leaf[4], beyond[4];
    cpuid(0, 0, top);
    EXPECT(top[0] >= 7);
    cpuid(1, 0, leaf);
    EXPECT((leaf[3] & 1) && (leaf[3] >> 4 & 1) && (leaf[3] >> 5 & 1) && (leaf[3] >> 25 & 3) == 3);
    EXPECT_EQ(leaf[1] >> 24, apic_read(0x20) >> 24); /* initial APIC id */
    cpuid(0x3fffffff, 0, beyond); /* above the highest basic leaf: Intel gives the highest's */
    cpuid(7, 0x1000, leaf);
    EXPECT_EQ(leaf[0] | leaf[1] | leaf[2] | leaf[3], 0);
}

TEST(rdpmc_by_pce)
{
    struct regs r = user_regs();
    RUN(&r, "rdpmc");
    TRAPPED(&r, V_GP, 0, 0);
    write_cr4(read_cr4() | CR4_PCE);
    r = user_regs();
    r.cx = 0x12345678; /* no such counter */
    RUN(&r, "rdpmc");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(iopl_and_io_bitmap)
{
    struct regs r = user_regs();
    RUN(&r, "mov dx, 0x3fd; in al, dx");
    TRAPPED(&r, V_GP, 0, 4);
    r = user_regs();
    r.flags |= F_IOPL(3);
    RUN(&r, "mov dx, 0x3fd; in al, dx; cli; sti; cli");
    if (DONE(&r))
        EXPECT_EQ(r.ax & 0x20, 0x20);
    tss.map[0x3fd / 8] = (u8) ~(1 << 5);
    r = user_regs();
    RUN(&r, "mov dx, 0x3fd; in al, dx; in ax, dx");
    TRAPPED(&r, V_GP, 0, 5);
    r = user_regs();
    r.di = (word)new_page();
    RUN(&r, "mov dx, 0x3fd; insb; insw");
    TRAPPED(&r, V_GP, 0, 5);
}

TEST(popf_by_privilege)
{
    struct regs r = user_regs();
    r.flags |= F_IF;
    RUN(&r, "push 0x3002; popfq");
    if (DONE(&r))
        EXPECT_EQ(r.flags & (F_IF | F_IOPL(3)), F_IF);
    r = kernel_regs();
    r.ax = F_RF | F_VM | F_AC | F_ID | F_CF | 2;
    RUN(&r, "push rax; popfq");
    if (DONE(&r))
        EXPECT_EQ(r.flags, F_AC | F_ID | F_CF | 2);
    r = kernel_regs();
    r.flags |= F_AC;
    RUN(&r, "push 0x2; .byte 0x66, 0x9d"); /* 16 bits: the upper half stays */
    if (DONE(&r))
        EXPECT_EQ(r.flags & F_AC, F_AC);
    r = kernel_regs();
    RUN(&r, "cli; pushfq; pop rax; sti; pushfq; cli; pop rbx");
    if (DONE(&r)) {
        EXPECT_EQ(r.ax & F_IF, 0);
        EXPECT_EQ(r.bx & F_IF, F_IF);
    }
}

TEST(monitor_and_mwait_at_cpl3)
{
    NEED(HAS(C1_ECX, 3));
    struct regs r = user_regs();
    r.ax = (word)new_page();
    RUN(&r, ".byte 0x0f, 0x01, 0xc8");
    TRAPPED(&r, V_UD, 0, 0);
    r = kernel_regs();
    r.ax = (word)new_page(), r.cx = 1;
    RUN(&r, ".byte 0x0f, 0x01, 0xc8"); /* an extension that does not exist */
    TRAPPED(&r, V_GP, 0, 0);
}
