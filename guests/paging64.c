/* 4-level and 5-level paging: every page size, A/D, rights (U/S, W, WP, NX, SMEP, SMAP, PKU),
 * reserved bits, error codes, PCID, global pages and what flushes what.
 * SDM vol. 3 chapter 5 (paging), sections 5.5-5.7, 5.10. Stale translations are legal until they are
 * flushed, so no case expects one: each expects that a flush is effective. */
#include "guest.h"

#define A TEST_VA
#define ALL (P_P | P_W | P_U)

static struct regs load(struct regs r, word va)
{
    r.ax = va;
    RUN(&r, "mov rbx, [rax]");
    return r;
}
static struct regs store(struct regs r, word va)
{
    r.ax = va;
    r.bx = 0x77;
    RUN(&r, "mov [rax], rbx");
    return r;
}
static struct regs fetch(struct regs r, word va)
{
    run_at(&r, (void *)va);
    return r;
}
/* A page of code that ends at once. */
static u8 *code_page(void)
{
    u8 *page = new_page();
    page[0] = 0xcd, page[1] = V_DONE;
    return page;
}
static int faults_at(const struct regs *r, word error, word cr2, int line)
{
    int ok = trapped_at(r, V_PF, error, 0, line);
    if (r->cr2 != cr2)
        fail("CR2 0x%lx want 0x%lx (line %d)", r->cr2, cr2, line);
    return ok;
}
#define FAULTS(r, error, cr2) faults_at(&(r), error, cr2, __LINE__)

TEST(not_present_at_each_level)
{
    struct regs r = load(kernel_regs(), A + 0x123);
    FAULTS(r, 0, A + 0x123);
    for (int level = 3; level >= 1; level--) {
        u64 *e = entry_of(A, level);
        *e = ~P_P & 0xfffffffffffff; /* all other bits set: no reserved-bit fault without P */
        r = load(user_regs(), A + 8);
        FAULTS(r, PF_U, A + 8);
        r = store(user_regs(), A + 8);
        FAULTS(r, PF_U | PF_W, A + 8);
        *e = 0;
    }
    r = fetch(user_regs(), A + 8);
    FAULTS(r, PF_U | PF_I, A + 8);
}

TEST(page_sizes)
{
    u64 *page = new_page();
    page[1] = 0x1234;
    map_page(A, (word)page, ALL, 1);
    struct regs r = load(kernel_regs(), A + 8);
    if (DONE(&r))
        EXPECT_EQ(r.bx, 0x1234);
    map_page(A + 0x200000, 0, ALL, 2);
    r = load(kernel_regs(), A + 0x200000 + (word)page + 8);
    if (DONE(&r))
        EXPECT_EQ(r.bx, 0x1234);
    NEED(HAS_1G);
    map_page(A + 0x40000000, 0, ALL, 3);
    r = load(kernel_regs(), A + 0x40000000 + (word)page + 8);
    if (DONE(&r))
        EXPECT_EQ(r.bx, 0x1234);
}

TEST(accessed_and_dirty)
{
    for (int level = 1; level <= 2 + (int)HAS_1G; level++) {
        word va = A + ((word)level << 32);
        u64 *e = map_page(va, 0, ALL, level);
        u64 *up = entry_of(va, level + 1);
        word at = va + 0x800; /* low memory, unused */
        if (level < 3) /* above, the cases share one entry */
            EXPECT_EQ(*up & P_A, 0);
        struct regs r = load(kernel_regs(), at);
        DONE(&r);
        EXPECT_EQ(*e & (P_A | P_D), P_A);
        EXPECT_EQ(*up & P_A, P_A);
        EXPECT_EQ(entry_of(va, 4)[0] & P_A, P_A);
        *e &= ~P_A;
        invlpg(at);
        r = store(kernel_regs(), at);
        DONE(&r);
        EXPECT_EQ(*e & (P_A | P_D), P_A | P_D);
        EXPECT_EQ(*up & P_D, 0);
    }
}

TEST(dirty_set_on_write_after_read)
{
    u64 *e = map_page(A, (word)new_page(), ALL, 1);
    struct regs r = load(kernel_regs(), A);
    EXPECT_EQ(*e & P_D, 0);
    r = store(kernel_regs(), A); /* the translation is cached without D */
    DONE(&r);
    EXPECT_EQ(*e & P_D, P_D);
}

TEST(no_dirty_when_write_is_refused)
{
    u64 *e = map_page(A, (word)new_page(), P_P | P_U, 1);
    struct regs r = store(user_regs(), A);
    FAULTS(r, PF_P | PF_W | PF_U, A);
    EXPECT_EQ(*e & P_D, 0);
}

TEST(read_only_user_and_wp)
{
    map_page(A, (word)new_page(), P_P | P_U, 1);
    struct regs r = load(user_regs(), A);
    DONE(&r);
    r = store(user_regs(), A);
    FAULTS(r, PF_P | PF_W | PF_U, A);
    r = store(kernel_regs(), A);
    FAULTS(r, PF_P | PF_W, A);
    write_cr0(read_cr0() & ~CR0_WP);
    r = store(kernel_regs(), A);
    DONE(&r);
    r = store(user_regs(), A);
    FAULTS(r, PF_P | PF_W | PF_U, A);
    write_cr0(read_cr0() | CR0_WP); /* effective at once */
    r = store(kernel_regs(), A + 8);
    FAULTS(r, PF_P | PF_W, A + 8);
}

TEST(rights_of_every_level_combine)
{
    u64 *page = new_page();
    for (int level = 4; level >= 1; level--) {
        u64 *e = map_page(A, (word)page, ALL, 1);
        (void)e;
        u64 *at = entry_of(A, level);
        *at &= ~P_W;
        write_cr3(read_cr3());
        struct regs r = store(user_regs(), A);
        FAULTS(r, PF_P | PF_W | PF_U, A);
        *at = (*at | P_W) & ~P_U;
        write_cr3(read_cr3());
        r = load(user_regs(), A);
        FAULTS(r, PF_P | PF_U, A);
        r = store(kernel_regs(), A);
        DONE(&r);
        *at |= P_U | P_NX;
        write_cr3(read_cr3());
        r = fetch(kernel_regs(), A);
        FAULTS(r, PF_P | PF_I, A);
        *at &= ~P_NX;
        write_cr3(read_cr3());
    }
}

TEST(nx_and_efer_nxe)
{
    u64 *e = map_page(A, (word)code_page(), ALL | P_NX, 1);
    struct regs r = fetch(user_regs(), A);
    FAULTS(r, PF_P | PF_I | PF_U, A);
    r = load(user_regs(), A);
    DONE(&r);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~(u64)EFER_NXE); /* now bit 63 is reserved */
    write_cr3(read_cr3());
    r = load(kernel_regs(), A);
    FAULTS(r, PF_P | PF_RSVD, A);
    *e &= ~P_NX;
    invlpg(A);
    r = fetch(user_regs(), A);
    DONE(&r);
    *e = 0;
    invlpg(A);
    r = fetch(user_regs(), A); /* without NXE and SMEP, fetches do not set I/D */
    FAULTS(r, PF_U, A);
}

TEST(reserved_bits)
{
    u64 high = maxphyaddr() < 52 ? 1ull << 51 : 0;
    for (int level = 4; level >= 1 && high; level--) {
        map_page(A, (word)new_page(), ALL, 1);
        u64 *e = entry_of(A, level);
        *e |= high;
        write_cr3(read_cr3());
        struct regs r = load(user_regs(), A);
        FAULTS(r, PF_P | PF_RSVD | PF_U, A);
        r = store(kernel_regs(), A);
        FAULTS(r, PF_P | PF_RSVD | PF_W, A);
        *e &= ~high;
        write_cr3(read_cr3());
    }
    u64 *e = map_page(A + 0x200000, 0x2000, ALL, 2); /* a 2 MiB page with bit 13 set */
    struct regs r = load(kernel_regs(), A + 0x200000);
    FAULTS(r, PF_P | PF_RSVD, A + 0x200000);
    *e = ALL | P_PS | P_PAT; /* bit 12 is PAT */
    invlpg(A + 0x200000);
    r = load(kernel_regs(), A + 0x200000);
    DONE(&r);
    u64 *top = entry_of(A, 4);
    *top |= P_PS; /* PS in a PML4 entry is reserved */
    write_cr3(read_cr3());
    r = load(kernel_regs(), A);
    FAULTS(r, PF_P | PF_RSVD, A);
    *top &= ~P_PS;
    write_cr3(read_cr3());
    NEED(HAS_1G);
    map_page(A + 0x40000000, 0x200000, ALL, 3);
    r = load(kernel_regs(), A + 0x40000000);
    FAULTS(r, PF_P | PF_RSVD, A + 0x40000000);
}

TEST(reserved_before_rights)
{
    u64 high = maxphyaddr() < 52 ? 1ull << 51 : 0;
    NEED(high);
    map_page(A, high, P_P, 1);
    struct regs r = store(user_regs(), A);
    FAULTS(r, PF_P | PF_RSVD | PF_U | PF_W, A);
}

TEST(invlpg_makes_changes_effective)
{
    u64 *one = new_page(), *two = new_page();
    one[0] = 1, two[0] = 2;
    u64 *e = map_page(A, (word)one, ALL, 1);
    struct regs r = load(kernel_regs(), A);
    EXPECT_EQ(r.bx, 1);
    *e = (word)two | ALL;
    invlpg(A + 0xfff);
    r = load(kernel_regs(), A);
    EXPECT_EQ(r.bx, 2);
    *e = 0;
    invlpg(A);
    r = load(kernel_regs(), A);
    FAULTS(r, 0, A);
}

TEST(no_invlpg_needed_from_not_present)
{
    struct regs r = load(kernel_regs(), A);
    FAULTS(r, 0, A);
    u64 *page = new_page();
    page[0] = 9;
    map_page(A, (word)page, ALL, 1);
    r = load(kernel_regs(), A);
    if (DONE(&r))
        EXPECT_EQ(r.bx, 9);
}

TEST(raised_rights_after_fault)
{
    /* A fault flushes the address's stale translation: after granting, the retry succeeds without
     * INVLPG (section 5.10.4.3). */
    u64 *e = map_page(A, (word)new_page(), P_P, 1);
    struct regs r = load(kernel_regs(), A);
    DONE(&r);
    r = store(user_regs(), A);
    FAULTS(r, PF_P | PF_U | PF_W, A);
    *e |= P_U | P_W;
    r = store(user_regs(), A);
    DONE(&r);
}

TEST(invlpg_in_large_page)
{
    u64 *page = new_page();
    page[0] = 5;
    u64 *e = map_page(A, 0, ALL, 2);
    struct regs r = load(kernel_regs(), A + (word)page % 0x200000);
    r = load(kernel_regs(), A + 0x1000);
    *e = 0;
    invlpg(A + 0x3000); /* any address of the page */
    r = load(kernel_regs(), A + (word)page % 0x200000);
    EXPECT_EQ(r.vector, V_PF);
    r = load(kernel_regs(), A + 0x1000);
    EXPECT_EQ(r.vector, V_PF);
}

TEST(invlpg_noncanonical_is_a_nop)
{
    struct regs r = kernel_regs();
    r.ax = 0x0000800000000000;
    RUN(&r, "invlpg [rax]");
    DONE(&r);
}

TEST(cr3_flushes_but_not_global)
{
    u64 *one = new_page(), *two = new_page();
    one[0] = 1, two[0] = 2;
    u64 *e = map_page(A, (word)one, ALL, 1);
    write_cr4(read_cr4() | CR4_PGE);
    struct regs r = load(kernel_regs(), A);
    *e = (word)two | ALL;
    write_cr3(read_cr3());
    r = load(kernel_regs(), A);
    EXPECT_EQ(r.bx, 2);
    u64 *g = map_page(A + 0x1000, (word)one, ALL | P_G, 1);
    r = load(kernel_regs(), A + 0x1000);
    *g = (word)two | ALL | P_G;
    write_cr3(read_cr3()); /* may keep it */
    r = load(kernel_regs(), A + 0x1000);
    EXPECT(r.bx == 1 || r.bx == 2);
    write_cr4(read_cr4() & ~CR4_PGE); /* any change of PGE flushes all */
    r = load(kernel_regs(), A + 0x1000);
    EXPECT_EQ(r.bx, 2);
    write_cr4(read_cr4() | CR4_PGE);
    *g = (word)one | ALL | P_G;
    invlpg(A + 0x1000); /* INVLPG flushes global pages too */
    r = load(kernel_regs(), A + 0x1000);
    EXPECT_EQ(r.bx, 1);
}

TEST(cr0_pg_toggle_flushes_all)
{
    /* Through compatibility mode: CR0.PG cannot be cleared in 64-bit mode. */
    struct regs r = kernel_regs();
    RUN(&r, "mov rax, cr0; btr rax, 31; mov cr0, rax");
    TRAPPED(&r, V_GP, 0, 8);
}

TEST(smep)
{
    NEED(HAS_SMEP);
    u64 *e = map_page(A, (word)code_page(), ALL, 1);
    struct regs r = fetch(kernel_regs(), A);
    DONE(&r);
    identity_user(0);
    write_cr4(read_cr4() | CR4_SMEP);
    r = fetch(kernel_regs(), A);
    FAULTS(r, PF_P | PF_I, A);
    r = fetch(user_regs(), A);
    DONE(&r);
    r = load(kernel_regs(), A);
    DONE(&r);
    *e &= ~P_U;
    invlpg(A);
    r = fetch(kernel_regs(), A);
    DONE(&r);
    /* U/S of any level makes it a supervisor page. */
    *e |= P_U;
    *entry_of(A, 3) &= ~P_U;
    write_cr3(read_cr3());
    r = fetch(kernel_regs(), A);
    DONE(&r);
}

TEST(smap)
{
    NEED(HAS_SMAP);
    u64 *e = map_page(A, (word)new_page(), ALL, 1);
    identity_user(0);
    write_cr4(read_cr4() | CR4_SMAP);
    struct regs r = load(kernel_regs(), A);
    FAULTS(r, PF_P, A);
    r = store(kernel_regs(), A);
    FAULTS(r, PF_P | PF_W, A);
    r = kernel_regs();
    r.flags |= F_AC; /* as after STAC */
    r = store(r, A);
    DONE(&r);
    r = kernel_regs();
    r.ax = A;
    RUN(&r, "stac; mov rbx, [rax]; clac; mov rbx, [rax]");
    TRAPPED(&r, V_PF, PF_P, 9);
    u8 *page = new_page(); /* user code needs a user page: the identity map is closed */
    memcpy(page, "\x48\x89\x18\xcd\x81", 5);
    map_page(A + 0x1000, (word)page, ALL, 1);
    r = user_regs();
    r.ax = A;
    run_at(&r, (void *)(A + 0x1000));
    DONE(&r);
    *e &= ~P_U;
    invlpg(A);
    r = store(kernel_regs(), A);
    DONE(&r);
}

TEST(smap_implicit_accesses_ignore_ac)
{
    /* A descriptor-table access is implicit: AC does not help (section 5.6). */
    NEED(HAS_SMAP);
    u64 *page = new_page();
    map_page(A, (word)page, ALL, 1);
    page[1] = descriptor(0, 0xfffff, 0x93, G4K | DB);
    set_gdt16(LDT_SEL, A, 255, 0x82);
    asm volatile("lldt %w0" : : "r"(LDT_SEL));
    identity_user(0);
    write_cr4(read_cr4() | CR4_SMAP);
    struct regs r = kernel_regs();
    r.flags |= F_AC;
    r.cx = 0x0c;
    RUN(&r, "mov fs, ecx");
    TRAPPED(&r, V_PF, PF_P, 0);
    EXPECT_EQ(r.cr2, A + 8);
}

TEST(stac_clac_rules)
{
    NEED(HAS_SMAP);
    struct regs r = kernel_regs();
    RUN(&r, "stac");
    if (DONE(&r))
        EXPECT_EQ(r.flags & F_AC, F_AC);
    RUN(&r, "clac");
    if (DONE(&r))
        EXPECT_EQ(r.flags & F_AC, 0);
    r = user_regs();
    RUN(&r, "stac");
    TRAPPED(&r, V_UD, 0, 0);
}

TEST(pku)
{
    NEED(HAS_PKU);
    struct regs r = kernel_regs();
    RUN(&r, ".byte 0x0f, 0x01, 0xee"); /* RDPKRU without CR4.PKE */
    TRAPPED(&r, V_UD, 0, 0);
    map_page(A, (word)new_page(), ALL | 3ull << 59, 1);
    write_cr4(read_cr4() | CR4_PKE);
    r = user_regs();
    r.r8 = A;
    r.ax = 1u << 6; /* AD of key 3 */
    RUN(&r, ".byte 0x0f, 0x01, 0xef; mov rbx, [r8]");
    TRAPPED(&r, V_PF, PF_P | PF_U | PF_PK, 3);
    r = user_regs();
    r.r8 = A;
    r.ax = 2u << 6; /* WD */
    RUN(&r, ".byte 0x0f, 0x01, 0xef; mov rbx, [r8]; mov [r8], rbx");
    TRAPPED(&r, V_PF, PF_P | PF_U | PF_W | PF_PK, 6);
    r = kernel_regs();
    r.r8 = A;
    r.ax = 2u << 6; /* CPL 0 with WP: WD holds as well */
    RUN(&r, ".byte 0x0f, 0x01, 0xef; mov rbx, [r8]; mov [r8], rbx");
    TRAPPED(&r, V_PF, PF_P | PF_W | PF_PK, 6);
    write_cr0(read_cr0() & ~CR0_WP);
    r = kernel_regs();
    r.r8 = A;
    r.ax = 2u << 6;
    RUN(&r, ".byte 0x0f, 0x01, 0xef; mov [r8], rbx");
    DONE(&r);
    r = kernel_regs();
    r.r8 = A;
    r.ax = 1u << 6;
    RUN(&r, ".byte 0x0f, 0x01, 0xef; mov rbx, [r8]");
    TRAPPED(&r, V_PF, PF_P | PF_PK, 3);
    /* keys do not concern fetches, nor supervisor pages */
    u8 *code = code_page();
    map_page(A + 0x1000, (word)code, ALL | 3ull << 59, 1);
    r = fetch(user_regs(), A + 0x1000);
    DONE(&r);
    map_page(A + 0x2000, (word)new_page(), P_P | P_W | 3ull << 59, 1);
    r = store(kernel_regs(), A + 0x2000);
    DONE(&r);
    r = kernel_regs();
    RUN(&r, "xor eax, eax; .byte 0x0f, 0x01, 0xef");
    DONE(&r);
    r = kernel_regs();
    r.cx = 1;
    RUN(&r, ".byte 0x0f, 0x01, 0xee"); /* ECX must be 0 */
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.dx = 1;
    RUN(&r, ".byte 0x0f, 0x01, 0xef");
    TRAPPED(&r, V_GP, 0, 0);
}

static void pcid_on(void)
{
    write_cr3((word)pml4);
    write_cr4(read_cr4() | CR4_PCIDE);
}

TEST(pcid_enable_rules)
{
    NEED(HAS_PCID);
    struct regs r = kernel_regs();
    r.ax = (word)pml4 | 1;
    r.bx = read_cr4() | CR4_PCIDE;
    RUN(&r, "mov cr3, rax; mov cr4, rbx"); /* CR3[11:0] must be 0 */
    TRAPPED(&r, V_GP, 0, 3);
    pcid_on();
    r = kernel_regs();
    r.ax = (word)pml4 | 0x123 | 1ull << 63;
    RUN(&r, "mov cr3, rax; mov rbx, cr3");
    if (DONE(&r))
        EXPECT_EQ(r.bx, (word)pml4 | 0x123); /* bit 63 is not stored */
    write_cr3((word)pml4);
    write_cr4(read_cr4() & ~CR4_PCIDE);
    r = kernel_regs();
    r.ax = (word)pml4 | 1ull << 63;
    RUN(&r, "mov cr3, rax"); /* without PCIDE, bit 63 is reserved */
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(pcid_flush_of_current)
{
    NEED(HAS_PCID);
    u64 *one = new_page(), *two = new_page();
    one[0] = 1, two[0] = 2;
    u64 *e = map_page(A, (word)one, ALL, 1);
    pcid_on();
    write_cr3((word)pml4 | 7);
    struct regs r = load(kernel_regs(), A);
    EXPECT_EQ(r.bx, 1);
    *e = (word)two | ALL;
    write_cr3((word)pml4 | 9 | 1ull << 63); /* another PCID: nothing cached there yet */
    r = load(kernel_regs(), A);
    EXPECT(r.bx == 2);
    write_cr3((word)pml4 | 7 | 1ull << 63); /* no flush: stale 1 is legal */
    r = load(kernel_regs(), A);
    EXPECT(r.bx == 1 || r.bx == 2);
    write_cr3((word)pml4 | 7); /* flush of PCID 7 */
    r = load(kernel_regs(), A);
    EXPECT_EQ(r.bx, 2);
    write_cr3((word)pml4);
    write_cr4(read_cr4() & ~CR4_PCIDE);
}

TEST(invpcid)
{
    NEED(HAS_PCID && HAS_INVPCID);
    u64 *one = new_page(), *two = new_page();
    one[0] = 1, two[0] = 2;
    u64 *e = map_page(A, (word)one, ALL, 1);
    pcid_on();
    write_cr4(read_cr4() | CR4_PGE);
    static const word pcid = 5;
    for (word type = 0; type < 4; type++) {
        u64 want = type & 1;
        *e = want ? (word)one | ALL : (word)two | ALL;
        write_cr3((word)pml4 | pcid);
        struct regs r = load(kernel_regs(), A);
        *e = want ? (word)two | ALL : (word)one | ALL;
        struct { u64 pcid, va; } d = {type < 2 ? pcid : 0, type == 0 ? A : 0};
        r = kernel_regs();
        r.ax = type;
        r.bx = (word)&d;
        RUN(&r, "invpcid rax, [rbx]");
        DONE(&r);
        r = load(kernel_regs(), A);
        EXPECT_EQ(r.bx, want ? 2 : 1);
    }
    struct { u64 pcid, va; } d = {0, 0};
    struct regs r = kernel_regs();
    r.ax = 4, r.bx = (word)&d;
    RUN(&r, "invpcid rax, [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    d.pcid = 0x1000; /* beyond 12 bits */
    r = kernel_regs();
    r.ax = 1, r.bx = (word)&d;
    RUN(&r, "invpcid rax, [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    d.pcid = 0;
    d.va = 0x0000800000000000;
    r = kernel_regs();
    r.ax = 0, r.bx = (word)&d;
    RUN(&r, "invpcid rax, [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    write_cr3((word)pml4);
    write_cr4(read_cr4() & ~CR4_PCIDE);
    d.va = 0, d.pcid = 1; /* without PCIDE, only PCID 0 exists for types 0 and 1 */
    r = kernel_regs();
    r.ax = 1, r.bx = (word)&d;
    RUN(&r, "invpcid rax, [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
    r = user_regs();
    r.ax = 2, r.bx = (word)&d;
    RUN(&r, "invpcid rax, [rbx]");
    TRAPPED(&r, V_GP, 0, 0);
}

TEST(invpcid_all_flushes_other_pcid)
{
    NEED(HAS_PCID && HAS_INVPCID);
    u64 *one = new_page(), *two = new_page();
    one[0] = 1, two[0] = 2;
    u64 *e = map_page(A, (word)one, ALL, 1);
    pcid_on();
    for (word type = 1; type < 4; type++) {
        *e = (word)one | ALL;
        write_cr3((word)pml4 | 5);
        struct regs r = load(kernel_regs(), A);
        EXPECT_EQ(r.bx, 1);
        *e = (word)two | ALL;
        write_cr3((word)pml4 | 6);
        struct { u64 pcid, va; } d = {type == 1 ? 5 : 0, 0};
        r = kernel_regs();
        r.ax = type, r.bx = (word)&d;
        RUN(&r, "invpcid rax, [rbx]");
        write_cr3((word)pml4 | 5 | 1ull << 63);
        r = load(kernel_regs(), A);
        EXPECT_EQ(r.bx, 2);
    }
    write_cr3((word)pml4);
    write_cr4(read_cr4() & ~CR4_PCIDE);
}

TEST(tables_in_the_way_of_themselves)
{
    /* A page table that maps itself: changing an entry through its own mapping. */
    u64 *one = new_page(), *two = new_page();
    one[0] = 1, two[0] = 2;
    u64 *e = map_page(A, (word)one, ALL, 1);
    word table = (word)e & ~4095ul;
    map_page(A + 0x1000, table, ALL, 1);
    volatile u64 *alias = (volatile u64 *)(A + 0x1000);
    struct regs r = load(kernel_regs(), A);
    EXPECT_EQ(r.bx, 1);
    alias[((word)e & 4095) / 8] = (word)two | ALL;
    invlpg(A);
    r = load(kernel_regs(), A);
    EXPECT_EQ(r.bx, 2);
}

TEST(aliases_share_memory)
{
    u64 *page = new_page();
    map_page(A, (word)page, ALL, 1);
    map_page(A + 0x1000, (word)page, ALL, 1);
    struct regs r = store(kernel_regs(), A + 8);
    r = load(kernel_regs(), A + 0x1008);
    EXPECT_EQ(r.bx, 0x77);
    EXPECT_EQ(page[1], 0x77);
}

TEST(straddle_over_two_rights)
{
    map_page(A, (word)new_page(), ALL, 1);
    map_page(A + 0x1000, (word)new_page(), P_P | P_W, 1);
    struct regs r = user_regs();
    r = load(r, A + 0xffc);
    FAULTS(r, PF_P | PF_U, A + 0x1000);
    map_page(A, (word)new_page(), P_P | P_U, 1);
    map_page(A + 0x1000, (word)new_page(), ALL, 1);
    invlpg(A);
    invlpg(A + 0x1000);
    r = user_regs();
    r = store(r, A + 0xffc);
    FAULTS(r, PF_P | PF_U | PF_W, A + 0xffc);
}

TEST(cr2_of_wide_access)
{
    /* CR2 is the lowest faulting byte's address as the processor generated it: the page crossed into. */
    map_page(A, (word)new_page(), ALL, 1);
    struct regs r = load(kernel_regs(), A + 0xffd);
    FAULTS(r, 0, A + 0x1000);
    r = load(kernel_regs(), A + 0x1ffd);
    FAULTS(r, 0, A + 0x1ffd);
}

/* ---- 5-level paging: entered through compatibility mode with paging off ---- */
extern const char la57_switch[];
asm(".pushsection .snip,\"ax\"\n.code64\n"
    "la57_switch: push %rbx\n push %rbp\n mov %rsp, %rbp\n"
    "pushq $0x18\n pushq $1f\n lretq\n"                   /* to 32-bit code */
    ".code32\n1: mov $0x10, %eax\n mov %eax, %ss\n"
    "mov %cr0, %eax\n and $0x7fffffff, %eax\n mov %eax, %cr0\n" /* leaves long mode */
    "mov %cr4, %eax\n mov %esi, %ecx\n shl $12, %ecx\n and $~0x1000, %eax\n or %ecx, %eax\n mov %eax, %cr4\n"
    "mov %edi, %cr3\n mov %cr0, %eax\n or $0x80000000, %eax\n mov %eax, %cr0\n"
    "ljmp $8, $2f\n.code64\n2: mov %rbp, %rsp\n pop %rbp\n pop %rbx\n ret\n.popsection");

static void set_la57(word root, int on)
{
    void (*go)(word, word) = (void (*)(word, word))(word)la57_switch;
    go(root, (word)on);
}

TEST(la57)
{
    NEED(HAS_LA57);
    u64 *pml5 = new_page(), *top = new_page(), *pdpt = new_page(), *pd = new_page(), *pt = new_page();
    u64 *page = new_page();
    page[0] = 0x55;
    pml5[0] = (word)pml4 | ALL;
    pml5[1] = (word)top | ALL; /* linear 2^48 */
    top[0] = (word)pdpt | ALL;
    pdpt[0] = (word)pd | ALL;
    pd[0] = (word)pt | ALL;
    pt[0] = (word)page | ALL;
    struct regs r = kernel_regs();
    r.ax = read_cr4() | CR4_LA57;
    RUN(&r, "mov cr4, rax"); /* not in long mode */
    TRAPPED(&r, V_GP, 0, 0);
    set_la57((word)pml5, 1);
    EXPECT_EQ(read_cr4() & CR4_LA57, CR4_LA57);
    r = load(kernel_regs(), 1ul << 48);
    if (DONE(&r))
        EXPECT_EQ(r.bx, 0x55);
    EXPECT_EQ(pml5[1] & P_A, P_A);
    EXPECT_EQ(pml5[1] & P_D, 0);
    r = load(kernel_regs(), 0x0000800000000000); /* canonical now, not mapped */
    FAULTS(r, 0, 0x0000800000000000);
    r = load(kernel_regs(), 1ul << 56); /* not canonical in 57 bits either */
    TRAPPED(&r, V_GP, 0, 0);
    pml5[1] |= P_PS; /* reserved */
    write_cr3(read_cr3());
    r = load(kernel_regs(), 1ul << 48);
    FAULTS(r, PF_P | PF_RSVD, 1ul << 48);
    pml5[1] = ((word)top | ALL) & ~P_U;
    write_cr3(read_cr3());
    r = load(user_regs(), 1ul << 48);
    FAULTS(r, PF_P | PF_U, 1ul << 48);
    r = kernel_regs();
    r.ax = read_cr4() & ~CR4_LA57;
    RUN(&r, "mov cr4, rax");
    TRAPPED(&r, V_GP, 0, 0);
    /* FS base and friends take 57-bit canonical addresses */
    r = kernel_regs();
    r.cx = 0xc0000100;
    r.dx = 0x00800000;
    RUN(&r, "wrmsr; rdmsr");
    DONE(&r);
    wrmsr(0xc0000100, 0);
    set_la57((word)pml4, 0);
    EXPECT_EQ(read_cr4() & CR4_LA57, 0);
}
