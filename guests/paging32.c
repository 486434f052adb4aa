/* No paging, 32-bit paging with and without PSE, PAE: sizes, A/D, rights, reserved bits, PDPTE loads.
 * SDM vol. 3 sections 5.1 (modes and control bits), 5.3 (32-bit), 5.4 (PAE), 5.4.1 (PDPTE registers). */
#include "guest.h"

#define VA 0x40000000u /* directory entry 256 */
#define ALL 7u

static u32 *dir;
/* 4 MiB identity pages for the low 16 MiB... with PSE; the table of VA is empty. */
static u32 *legacy(int pse)
{
    dir = new_page();
    if (pse) {
        for (u32 i = 0; i < 1024; i++)
            if (i != VA >> 22)
                dir[i] = i << 22 | 0x80 | ALL;
    } else {
        for (u32 i = 0; i < 8; i++) {
            u32 *table = new_page();
            for (u32 j = 0; j < 1024; j++)
                table[j] = (i << 22) + (j << 12) + ALL;
            dir[i] = (word)table | ALL;
        }
    }
    u32 *table = new_page();
    dir[VA >> 22] = (word)table | ALL;
    write_cr4(pse ? CR4_PSE : 0);
    write_cr3((word)dir);
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
    return table;
}
static struct regs load(struct regs r, word va)
{
    r.ax = va;
    RUN(&r, "mov ebx, [eax]");
    return r;
}
static struct regs store(struct regs r, word va)
{
    r.ax = va, r.bx = 0x77;
    RUN(&r, "mov [eax], ebx");
    return r;
}
static void faults_at(const struct regs *r, word error, word cr2, int at)
{
    trapped_at(r, V_PF, error, 0, at);
    if (r->cr2 != cr2)
        fail("CR2 0x%lx want 0x%lx (line %d)", r->cr2, cr2, at);
}
#define FAULTS(r, error, cr2) faults_at(&(r), error, cr2, __LINE__)

TEST(no_paging_is_identity)
{
    u32 *page = new_page();
    page[0] = 42;
    struct regs r = load(kernel_regs(), (word)page);
    EXPECT_EQ(r.bx, 42);
    r = load(user_regs(), (word)page);
    EXPECT_EQ(r.bx, 42);
}

static void small_pages(int pse)
{
    u32 *table = legacy(pse), *page = new_page();
    page[1] = 0x99;
    table[0] = (word)page | ALL;
    table[1] = (word)page | 5;
    table[2] = (word)page | 3;
    struct regs r = load(user_regs(), VA + 4);
    EXPECT_EQ(r.bx, 0x99);
    EXPECT_EQ(table[0] & 0x60, 0x20);
    EXPECT_EQ(dir[VA >> 22] & 0x20, 0x20);
    r = store(user_regs(), VA);
    DONE(&r);
    EXPECT_EQ(table[0] & 0x60, 0x60);
    r = store(user_regs(), VA + 0x1000);
    FAULTS(r, PF_P | PF_W | PF_U, VA + 0x1000);
    r = store(kernel_regs(), VA + 0x1000);
    FAULTS(r, PF_P | PF_W, VA + 0x1000);
    r = load(user_regs(), VA + 0x2000);
    FAULTS(r, PF_P | PF_U, VA + 0x2000);
    r = load(kernel_regs(), VA + 0x3000);
    FAULTS(r, 0, VA + 0x3000);
    r = kernel_regs(); /* no NX here: fetches are like reads, without I/D */
    run_at(&r, (void *)(VA + 0x3000));
    FAULTS(r, 0, VA + 0x3000);
    write_cr0(read_cr0() & ~CR0_WP);
    r = store(kernel_regs(), VA + 0x1000);
    DONE(&r);
}
TEST(small_pages_without_pse) { small_pages(0); }
TEST(small_pages_with_pse) { small_pages(1); }

TEST(ps_is_ignored_without_pse)
{
    u32 *table = legacy(0), *page = new_page();
    page[0] = 7;
    table[0] = (word)page | ALL;
    dir[VA >> 22] |= 0x80;
    write_cr3(read_cr3());
    struct regs r = load(kernel_regs(), VA);
    if (DONE(&r))
        EXPECT_EQ(r.bx, 7);
}

TEST(four_megabyte_pages)
{
    legacy(1);
    u32 *page = new_page();
    page[0] = 8;
    dir[VA >> 22] = 0x80 | ALL;
    write_cr3(read_cr3());
    struct regs r = load(kernel_regs(), VA + (word)page);
    if (DONE(&r))
        EXPECT_EQ(r.bx, 8);
    EXPECT_EQ(dir[VA >> 22] & 0x60, 0x20);
    r = store(kernel_regs(), VA + (word)page);
    EXPECT_EQ(dir[VA >> 22] & 0x60, 0x60);
    dir[VA >> 22] = 0x80 | 1u << 21 | ALL; /* bit 21 is reserved */
    write_cr3(read_cr3());
    r = load(kernel_regs(), VA);
    FAULTS(r, PF_P | PF_RSVD, VA);
}

TEST(global_pages)
{
    u32 *table = legacy(1), *one = new_page(), *two = new_page();
    one[0] = 1, two[0] = 2;
    table[0] = (word)one | ALL | 0x100;
    write_cr4(read_cr4() | CR4_PGE);
    struct regs r = load(kernel_regs(), VA);
    EXPECT_EQ(r.bx, 1);
    table[0] = (word)two | ALL | 0x100;
    invlpg(VA);
    r = load(kernel_regs(), VA);
    EXPECT_EQ(r.bx, 2);
    table[0] = (word)one | ALL | 0x100;
    write_cr4(read_cr4() & ~CR4_PGE);
    r = load(kernel_regs(), VA);
    EXPECT_EQ(r.bx, 1);
}

TEST(turning_paging_off_and_on)
{
    u32 *table = legacy(1), *page = new_page();
    page[0] = 3;
    table[0] = (word)page | ALL;
    struct regs r = load(kernel_regs(), VA);
    EXPECT_EQ(r.bx, 3);
    write_cr0(read_cr0() & ~CR0_PG);
    table[0] = 0;
    write_cr0(read_cr0() | CR0_PG);
    r = load(kernel_regs(), VA);
    FAULTS(r, 0, VA);
}

/* ---- PAE ---- */
static u64 *pdpt, *pd[4];
static u64 *pae(void)
{
    pdpt = new_page();
    for (u32 i = 0; i < 4; i++) {
        pd[i] = new_page();
        pdpt[i] = (word)pd[i] | 1;
        for (u32 j = 0; j < 512; j++)
            pd[i][j] = ((u64)i << 30) + (j << 21) + 0x87;
    }
    u64 *table = new_page();
    pd[VA >> 30][VA >> 21 & 511] = (word)table | ALL;
    write_cr4(CR4_PAE);
    write_cr3((word)pdpt);
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
    return table;
}

TEST(pae_pages)
{
    u64 *table = pae();
    u32 *page = new_page();
    page[0] = 4;
    table[0] = (word)page | ALL;
    table[1] = (word)page | 5;
    struct regs r = load(user_regs(), VA);
    EXPECT_EQ(r.bx, 4);
    EXPECT_EQ(table[0] & 0x60, 0x20);
    r = store(user_regs(), VA + 0x1000);
    FAULTS(r, PF_P | PF_W | PF_U, VA + 0x1000);
    r = load(kernel_regs(), VA + 0x2000);
    FAULTS(r, 0, VA + 0x2000);
    pd[1][1] = 0x87; /* a 2 MiB page at VA + 2 MiB */
    write_cr3(read_cr3());
    r = load(kernel_regs(), VA + 0x200000 + (word)page % 0x200000);
    DONE(&r);
    EXPECT_EQ(pd[1][1] & 0x20, 0x20);
    pd[1][1] = 0x87 | 1u << 13;
    write_cr3(read_cr3());
    r = load(kernel_regs(), VA + 0x200000);
    FAULTS(r, PF_P | PF_RSVD, VA + 0x200000);
}

TEST(pae_nx)
{
    NEED(HAS(CX_EDX, 20));
    u64 *table = pae();
    u8 *page = new_page();
    page[0] = 0xcd, page[1] = V_DONE;
    table[0] = (word)page | ALL | P_NX;
    struct regs r = load(kernel_regs(), VA); /* NXE clear: reserved */
    FAULTS(r, PF_P | PF_RSVD, VA);
    wrmsr(MSR_EFER, EFER_NXE);
    write_cr3(read_cr3());
    r = load(kernel_regs(), VA);
    DONE(&r);
    r = user_regs();
    run_at(&r, (void *)VA);
    FAULTS(r, PF_P | PF_U | PF_I, VA);
}

TEST(pae_reserved_bits)
{
    u64 *table = pae();
    table[0] = (word)new_page() | ALL | 1ull << 62;
    struct regs r = load(kernel_regs(), VA);
    FAULTS(r, PF_P | PF_RSVD, VA);
}

TEST(pdptes_are_loaded_with_cr3)
{
    u64 *table = pae();
    u32 *page = new_page();
    page[0] = 5;
    table[0] = (word)page | ALL;
    struct regs r = load(kernel_regs(), VA);
    EXPECT_EQ(r.bx, 5);
    u64 saved = pdpt[1];
    pdpt[1] = 0; /* in memory only: the register still holds it */
    invlpg(VA);
    r = load(kernel_regs(), VA);
    if (DONE(&r))
        EXPECT_EQ(r.bx, 5);
    write_cr3(read_cr3());
    r = load(kernel_regs(), VA);
    FAULTS(r, 0, VA);
    pdpt[1] = saved;
    write_cr3(read_cr3());
    r = load(kernel_regs(), VA);
    DONE(&r);
}

TEST(pdpte_reserved_bits_fault_the_load)
{
    pae();
    pdpt[1] |= 2; /* R/W is reserved in a PDPTE */
    struct regs r = kernel_regs();
    r.ax = read_cr3();
    RUN(&r, "mov cr3, eax");
    TRAPPED(&r, V_GP, 0, 0);
    pdpt[1] = 2; /* not present: not looked at */
    r = kernel_regs();
    r.ax = read_cr3();
    RUN(&r, "mov cr3, eax");
    DONE(&r);
    pdpt[1] = (word)pd[1] | 1 | 1ull << 62;
    r = kernel_regs();
    r.ax = read_cr0();
    RUN(&r, "mov cr3, eax");
    EXPECT_EQ(r.vector == V_GP || r.vector == V_DONE, 1);
    r = kernel_regs(); /* CR4.PGE's change reloads them too */
    r.ax = read_cr4() | CR4_PGE;
    RUN(&r, "mov cr4, eax");
    TRAPPED(&r, V_GP, 0, 0);
    EXPECT_EQ(read_cr4() & CR4_PGE, 0);
}

TEST(pae_switched_on_under_paging)
{
    /* CR4.PAE may change while PG is set: the tables then are read in the new format. */
    legacy(1);
    u64 *p = new_page();
    for (u32 i = 0; i < 4; i++) {
        u64 *d = new_page();
        p[i] = (word)d | 1;
        for (u32 j = 0; j < 512; j++)
            d[j] = ((u64)i << 30) + (j << 21) + 0x87;
    }
    /* CR3 must suit both: leave paging instead, as systems do. */
    write_cr0(read_cr0() & ~CR0_PG);
    write_cr4(CR4_PAE);
    write_cr3((word)p | 0x10); /* bits 4:3 are PCD and PWT; CR3 is 32-byte aligned in PAE mode */
    write_cr0(read_cr0() | CR0_PG);
    EXPECT_EQ(read_cr0() & CR0_PG, CR0_PG);
    write_cr0(read_cr0() & ~CR0_PG);
}

TEST(smep_and_smap_in_32_bit_modes)
{
    NEED(HAS_SMEP && HAS_SMAP);
    u32 *table = legacy(1);
    for (u32 i = 0; i < 1024; i++)
        if (i != VA >> 22)
            dir[i] &= ~4u; /* the identity map becomes supervisor */
    u8 *page = new_page();
    page[0] = 0xcd, page[1] = V_DONE;
    table[0] = (word)page | ALL;
    write_cr3(read_cr3());
    write_cr4(read_cr4() | CR4_SMEP | CR4_SMAP);
    struct regs r = kernel_regs();
    run_at(&r, (void *)VA);
    FAULTS(r, PF_P | PF_I, VA); /* I/D is reported with SMEP even without NXE */
    r = load(kernel_regs(), VA);
    FAULTS(r, PF_P, VA);
    r = kernel_regs();
    r.flags |= F_AC;
    r = load(r, VA);
    DONE(&r);
}

TEST(user_reads_of_tables_are_supervisor)
{
    /* Descriptor tables may lie in supervisor pages while CPL 3 code loads segments. */
    legacy(1);
    for (u32 i = 0; i < 1024; i++)
        if (i != VA >> 22)
            dir[i] &= ~4u;
    u32 *table = (u32 *)(dir[VA >> 22] & ~0xfffu);
    u8 *page = new_page();
    memcpy(page, "\x8e\xd8\xcd\x81", 4); /* mov ds, eax */
    table[0] = (word)page | ALL;
    write_cr3(read_cr3());
    struct regs r = user_regs();
    r.ax = UDS;
    run_at(&r, (void *)VA);
    DONE(&r);
}
