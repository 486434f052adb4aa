/* Several CPUs: INIT and SIPI, state after start-up, IPIs and their destinations, LOCK atomicity with
 * split locks, memory ordering, TLB shootdown, code modified by another CPU.
 * SDM vol. 3 chapters 9 (memory ordering, 9.1.3 cross-modifying code, 9.4 MP initialization), 11.6. */
#include "guest.h"

CPUS(3);

static volatile u32 ready, go, done;
static volatile u64 shared[64] __attribute__((aligned(64)));
#define WAIT(cond)                                                    \
    ({                                                                \
        u32 n_ = 0;                                                   \
        while (!(cond) && n_++ < 200000000)                           \
            pause();                                                  \
        if (!(cond))                                                  \
            fail("waited too long for " #cond " (line %d)", __LINE__); \
    })
static void add(volatile u32 *p) { asm volatile("lock incl %0" : "+m"(*p)); }
static void ipi(u32 apic_id, u32 command)
{
    apic_write(0x310, apic_id << 24);
    apic_write(0x300, command);
}
static void reset_shared(void)
{
    ready = go = done = 0;
    for (int i = 0; i < 64; i++)
        shared[i] = 0;
}
static int up(u32 id, void (*entry)(u32))
{
    int ok = start_ap(id, entry);
    if (!ok)
        fail("CPU %d does not start", id);
    return ok;
}

static u32 ap_facts[8];
static void tell(u32 index)
{
    ap_facts[0] = index;
    ap_facts[1] = apic_read(0x20) >> 24;
    u32 out[4];
    cpuid(1, 0, out);
    ap_facts[2] = out[1] >> 24;
    ap_facts[3] = (u32)rdmsr(0x1b);
    add(&done);
}

TEST(init_sipi_starts_each_cpu)
{
    for (u32 id = 1; id <= 2; id++) {
        reset_shared();
        if (!up(id, tell))
            return;
        WAIT(done == 1);
        EXPECT_EQ(ap_facts[0], id - 1);
        EXPECT_EQ(ap_facts[1], id);
        EXPECT_EQ(ap_facts[2], id);
        EXPECT_EQ(ap_facts[3] & 0x900, 0x800); /* enabled, not the BSP */
    }
}

TEST(a_cpu_can_be_started_again)
{
    for (int i = 0; i < 3; i++) {
        reset_shared();
        if (!up(1, tell)) /* INIT takes it out of whatever it does */
            return;
        WAIT(done == 1);
    }
}

/* Real-mode code at 0x8000 that stores what it finds. */
TEST(state_at_sipi)
{
    u8 *low = (u8 *)0x8000;
    asm("" : "+r"(low));
    const u8 *code = CODE16("mov bx, cs; mov ax, 0; mov ds, ax; mov [0x8800], bx; mov ecx, cr0; mov [0x8804], ecx;"
                            "call 1f; 1: pop dx; mov [0x8808], dx; pushfd; pop eax; mov [0x880c], eax;"
                            "mov eax, cr4; mov [0x8810], eax; str cx; mov dword ptr [0x8814], 1; 2: hlt; jmp 2b");
    volatile u32 *facts = (volatile u32 *)(low + 0x800);
    memcpy(low, code, 128);
    facts[5] = 0;
    apic_enable();
    ipi(1, 0x4500);
    delay_us(200);
    ipi(1, 0x4608);
    for (int i = 0; i < 1000 && !facts[5]; i++) {
        if (i == 10)
            ipi(1, 0x4608);
        delay_us(100);
    }
    /* STR is #UD in real mode: the flag behind it is never written, all else is. */
    EXPECT_EQ(facts[0] & 0xffff, 0x0800);
    EXPECT_EQ(facts[1] & 0x8000003f, 0x10); /* CR0: ET; CD and NW as INIT left them */
    EXPECT((facts[2] & 0xffff) < 0x80);
    EXPECT_EQ(facts[3], 2);
    EXPECT_EQ(facts[4], 0);
    ipi(1, 0x4500); /* away with it */
    delay_us(200);
}

static volatile u32 received[4];
static void ipi_seen(struct regs *frame)
{
    (void)frame;
    add(&received[apic_read(0x20) >> 24 & 3]);
    apic_write(0xb0, 0);
}
static void listen(u32 index)
{
    (void)index;
    add(&ready);
    asm volatile("sti");
    while (!go)
        asm volatile("hlt");
    cli();
    add(&done);
}

TEST(ipi_destinations)
{
    reset_shared();
    handlers[0x50] = ipi_seen;
    received[0] = received[1] = received[2] = 0;
    if (!up(1, listen) || !up(2, listen))
        return;
    WAIT(ready == 2);
    delay_us(1000);
    asm volatile("sti");
    ipi(1, 0x50);
    WAIT(received[1] == 1);
    ipi(2, 0x50);
    WAIT(received[2] == 1);
    EXPECT_EQ(received[0], 0);
    apic_write(0x300, 0xc0050); /* all but self */
    WAIT(received[1] == 2 && received[2] == 2);
    EXPECT_EQ(received[0], 0);
    apic_write(0x300, 0x80050); /* all */
    WAIT(received[0] == 1 && received[1] == 3 && received[2] == 3);
    apic_write(0x300, 0x40050); /* self */
    WAIT(received[0] == 2);
    ipi(0xff, 0x50); /* physical broadcast */
    WAIT(received[0] == 3 && received[1] == 4 && received[2] == 4);
    go = 1;
    apic_write(0x300, 0xc0050);
    WAIT(done == 2);
    cli();
}

#define ROUNDS 20000
static void *volatile target;
static void locked_adds(u32 index)
{
    (void)index;
    add(&ready);
    while (!go)
        pause();
    volatile u64 *p = target;
    for (int i = 0; i < ROUNDS; i++)
        asm volatile("lock incq %0" : "+m"(*p) : : "cc");
    add(&done);
}
static void hammer(void *at, const char *what)
{
    reset_shared();
    target = at;
    *(volatile u64 *)at = 0;
    if (!up(1, locked_adds) || !up(2, locked_adds))
        return;
    WAIT(ready == 2);
    go = 1;
    volatile u64 *p = at;
    for (int i = 0; i < ROUNDS; i++)
        asm volatile("lock incq %0" : "+m"(*p) : : "cc");
    WAIT(done == 2);
    if (*p != 3 * ROUNDS)
        fail("%s: %lld increments of %d", what, *p, 3 * ROUNDS);
}

TEST(lock_is_atomic) { hammer((void *)&shared[8], "aligned"); }
TEST(lock_split_over_cache_lines) { hammer((u8 *)&shared[8] - 3, "split over lines"); }
TEST(lock_split_over_pages)
{
    u8 *one = new_page(), *two = new_page(); /* neighbours only in linear space */
    map_page(TEST_VA, (word)one, P_P | P_W | P_U, 1);
    map_page(TEST_VA + 4096, (word)two, P_P | P_W | P_U, 1);
    hammer((void *)(TEST_VA + 4093), "split over pages");
}

/* Each CPU's share: both halves at once by a split LOCK, or one half by an aligned one. Where the halves
 * are two pages, each is also reached through its own page. */
static volatile u32 *volatile half[2];
static void half_adds(u32 index)
{
    add(&ready);
    while (!go)
        pause();
    volatile u32 *p = half[index];
    for (int i = 0; i < ROUNDS; i++)
        asm volatile("lock incl %0" : "+m"(*p) : : "cc");
    add(&done);
}
static void mixed(u8 *boundary, volatile u32 *low, volatile u32 *high)
{
    volatile u64 *both = (volatile u64 *)(boundary - 4);
    reset_shared();
    half[0] = low;
    half[1] = high;
    *both = 0;
    if (!up(1, half_adds) || !up(2, half_adds))
        return;
    WAIT(ready == 2);
    go = 1;
    for (int i = 0; i < ROUNDS; i++)
        asm volatile("lock addq %1, %0" : "+m"(*both) : "r"((1ull << 32) + 1) : "cc");
    WAIT(done == 2);
    EXPECT_EQ(*low, 2 * ROUNDS);
    EXPECT_EQ(*high, 2 * ROUNDS);
}
TEST(split_lock_against_aligned_over_cache_lines)
{
    mixed((u8 *)&shared[8], (volatile u32 *)&shared[8] - 1, (volatile u32 *)&shared[8]);
}
TEST(split_lock_against_aligned_over_pages)
{
    u8 *one = new_page(), *two = new_page();
    /* The other order: never neighbours. */
    map_page(TEST_VA, (word)two, P_P | P_W | P_U, 1);
    map_page(TEST_VA + 4096, (word)one, P_P | P_W | P_U, 1);
    mixed((u8 *)TEST_VA + 4096, (volatile u32 *)(two + 4092), (volatile u32 *)one);
}

static void cmpxchg16_adds(u32 index)
{
    (void)index;
    add(&ready);
    while (!go)
        pause();
    volatile u64 *p = target;
    for (int i = 0; i < ROUNDS / 4; i++) {
        u64 a = p[0], d = p[1];
        u8 ok;
        do {
            asm volatile("lock cmpxchg16b %1; setz %0"
                         : "=q"(ok), "+m"(*p), "+a"(a), "+d"(d) : "b"(a + 1), "c"(d + 2) : "cc", "memory");
        } while (!ok);
    }
    add(&done);
}

TEST(cmpxchg16b_is_atomic)
{
    reset_shared();
    target = (void *)&shared[16];
    if (!up(1, cmpxchg16_adds) || !up(2, cmpxchg16_adds))
        return;
    WAIT(ready == 2);
    go = 1;
    WAIT(done == 2);
    EXPECT_EQ(shared[16], 2 * (ROUNDS / 4));
    EXPECT_EQ(shared[17], 4 * (ROUNDS / 4));
}

static void xchg_lock_adds(u32 index)
{
    (void)index;
    add(&ready);
    while (!go)
        pause();
    for (int i = 0; i < ROUNDS / 4; i++) {
        u32 one = 1;
        while (one) { /* XCHG locks without the prefix */
            asm volatile("xchgl %0, %1" : "+r"(one), "+m"(shared[24]) : : "memory");
            if (one)
                pause();
        }
        shared[32]++;
        shared[24] = 0; /* a plain store releases: stores are ordered */
    }
    add(&done);
}

TEST(xchg_is_a_lock)
{
    reset_shared();
    if (!up(1, xchg_lock_adds) || !up(2, xchg_lock_adds))
        return;
    WAIT(ready == 2);
    go = 1;
    WAIT(done == 2);
    EXPECT_EQ(shared[32], 2 * (ROUNDS / 4));
}

static void store_then_flag(u32 index)
{
    (void)index;
    add(&ready);
    for (u64 i = 1; i <= ROUNDS; i++) {
        shared[0] = i;
        asm volatile("" : : : "memory");
        shared[8] = i;
    }
    add(&done);
}

TEST(stores_are_seen_in_order)
{
    reset_shared();
    if (!up(1, store_then_flag))
        return;
    u32 wrong = 0;
    while (!done) {
        u64 flag = shared[8];
        asm volatile("" : : : "memory");
        u64 data = shared[0];
        wrong += data < flag;
    }
    EXPECT_EQ(wrong, 0);
}

/* Dekker: with MFENCE never both zero. */
static void dekker(u32 index)
{
    (void)index;
    add(&ready);
    for (u64 i = 1; i <= ROUNDS / 4; i++) {
        while (shared[40] < i)
            pause();
        shared[0] = 1;
        asm volatile("mfence" : : : "memory");
        shared[16] = shared[8];
        asm volatile("" : : : "memory");
        shared[48] = i;
    }
    add(&done);
}

TEST(mfence_orders_store_and_load)
{
    reset_shared();
    if (!up(1, dekker))
        return;
    u32 both_zero = 0;
    for (u64 i = 1; i <= ROUNDS / 4; i++) {
        shared[0] = shared[8] = 0;
        asm volatile("mfence" : : : "memory");
        shared[40] = i;
        shared[8] = 1;
        asm volatile("mfence" : : : "memory");
        u64 mine = shared[0];
        WAIT(shared[48] >= i);
        both_zero += !mine && !shared[16];
    }
    WAIT(done == 1);
    EXPECT_EQ(both_zero, 0);
}

static void flush_page(struct regs *frame)
{
    (void)frame;
    invlpg(TEST_VA);
    apic_write(0xb0, 0);
    add(&received[3]);
}
static void read_mapped(u32 index)
{
    (void)index;
    volatile u64 *p = (volatile u64 *)TEST_VA;
    shared[1] = *p;
    add(&ready);
    asm volatile("sti");
    while (!go)
        pause();
    shared[2] = *p;
    cli();
    add(&done);
}

TEST(tlb_shootdown_by_ipi)
{
    reset_shared();
    u64 *one = new_page(), *two = new_page();
    one[0] = 1, two[0] = 2;
    u64 *e = map_page(TEST_VA, (word)one, P_P | P_W | P_U, 1);
    handlers[0x51] = flush_page;
    received[3] = 0;
    if (!up(1, read_mapped))
        return;
    WAIT(ready == 1);
    EXPECT_EQ(shared[1], 1);
    *e = (word)two | P_P | P_W | P_U;
    ipi(1, 0x51);
    WAIT(received[3] == 1);
    go = 1;
    WAIT(done == 1);
    EXPECT_EQ(shared[2], 2);
}

/* Cross-modifying code: the other CPU calls a function that this one rewrites, with the handshake of
 * SDM 9.1.3 (a serializing instruction before running new code). */
static u8 code_page[4096] __attribute__((aligned(4096)));
static void caller(u32 index)
{
    (void)index;
    u32 (*f)(void) = (u32 (*)(void))(word)code_page;
    add(&ready);
    for (u64 i = 1; i <= 500; i++) {
        while (shared[40] < i)
            pause();
        u32 out[4];
        cpuid(0, 0, out);
        shared[0] = f();
        asm volatile("" : : : "memory");
        shared[48] = i;
    }
    add(&done);
}

TEST(cross_modifying_code)
{
    reset_shared();
    memcpy(code_page, "\xb8\0\0\0\0\xc3", 6); /* mov eax, imm32; ret */
    if (!up(1, caller))
        return;
    u32 stale = 0;
    for (u64 i = 1; i <= 500; i++) {
        *(volatile u32 *)(code_page + 1) = (u32)i; /* unaligned on purpose: not executed meanwhile */
        asm volatile("" : : : "memory");
        shared[40] = i;
        WAIT(shared[48] >= i);
        stale += shared[0] != i;
    }
    WAIT(done == 1);
    EXPECT_EQ(stale, 0);
}

static void spinner(u32 index)
{
    (void)index;
    u32 (*f)(void) = (u32 (*)(void))(word)code_page;
    add(&ready);
    while (f() == 1) /* until the other CPU patches it */
        shared[5]++;
    add(&done);
}

TEST(patch_of_running_code_is_seen)
{
    /* Without a handshake the new code is used soon: an aligned store to the immediate. */
    reset_shared();
    memcpy(code_page, "\x90\x90\x90\xb8\x01\0\0\0\xc3", 9);
    if (!up(1, spinner))
        return;
    WAIT(shared[5] > 1000);
    *(volatile u32 *)(code_page + 4) = 2;
    WAIT(done == 1);
}

static void ap_write_ad(u32 index)
{
    (void)index;
    add(&ready);
    while (!go)
        pause();
    for (int i = 0; i < 64; i++)
        *(volatile u8 *)(TEST_VA + 4096ul * (u32)i) = 1;
    add(&done);
}

TEST(dirty_bits_are_set_atomically)
{
    /* This CPU flips software bits of the same entries with LOCK while the other sets A and D: none is lost. */
    reset_shared();
    u64 *table = new_page();
    u8 *page = new_page();
    u64 *e = entry_of(TEST_VA, 2);
    *e = (word)table | P_P | P_W | P_U;
    for (int i = 0; i < 64; i++)
        table[i] = (word)page | P_P | P_W | P_U;
    if (!up(1, ap_write_ad))
        return;
    WAIT(ready == 1);
    go = 1;
    u32 rounds = 0;
    while (!done && rounds++ < 100000)
        for (int i = 0; i < 64; i++)
            asm volatile("lock xorq %1, %0" : "+m"(table[i]) : "ri"(0x200ul) : "cc");
    WAIT(done == 1);
    u32 lost = 0;
    for (int i = 0; i < 64; i++)
        lost += (table[i] & (P_A | P_D)) != (P_A | P_D);
    EXPECT_EQ(lost, 0);
}

static void waits_for_nmi(u32 index)
{
    (void)index;
    add(&ready);
    while (!go)
        asm volatile("cli; hlt");
    add(&done);
}
static void on_nmi(struct regs *frame)
{
    (void)frame;
    go = 1;
}

TEST(nmi_wakes_a_halted_cpu_with_if_clear)
{
    reset_shared();
    handlers[V_NMI] = on_nmi;
    if (!up(1, waits_for_nmi))
        return;
    WAIT(ready == 1);
    delay_us(500);
    ipi(1, 0x400);
    WAIT(done == 1);
}

static void monitor_wait(u32 index)
{
    (void)index;
    add(&ready);
    while (!shared[56]) {
        asm volatile("monitor" : : "a"(&shared[56]), "c"(0), "d"(0));
        if (!shared[56])
            asm volatile("mwait" : : "a"(0), "c"(0));
    }
    add(&done);
}

TEST(mwait_wakes_by_a_store)
{
    NEED(HAS(C1_ECX, 3));
    reset_shared();
    if (!up(1, monitor_wait))
        return;
    WAIT(ready == 1);
    delay_us(500);
    shared[56] = 1;
    WAIT(done == 1);
}
