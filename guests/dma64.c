/* Code written by DMA: the machine's virtio-rng puts random bytes into the immediate of an instruction
 * that has been executed before. The next execution, on any CPU and through any address, must use them.
 * SDM vol. 3 section 13.11 (bus masters are snooped), 9.1.3; Virtual I/O Device 1.2, 2.7, 4.1, 5.4; PCI
 * 3.0, 6. */
#include "guest.h"

CPUS(2);

/* ---- configuration space, by ports CF8h and CFCh, bus 0 ---- */
static u32 config(unsigned slot, unsigned at)
{
    outl(0xcf8, 1u << 31 | slot << 11 | (at & ~3u));
    return inl(0xcfc) >> 8 * (at & 3);
}
static void set_config(unsigned slot, unsigned at, u32 value)
{
    outl(0xcf8, 1u << 31 | slot << 11 | at);
    outl(0xcfc, value);
}

/* ---- the device ---- */
static volatile u8 *common, *notify;
static u32 notify_step;
static struct {
    u64 address;
    u32 len;
    u16 flags, next;
} *table;
static volatile u16 *avail;
static volatile u16 *used;

static volatile u8 *structure(unsigned slot, unsigned cap)
{
    unsigned bar = 0x10 + 4 * (config(slot, cap + 4) & 7);
    u32 base = config(slot, bar);
    if (!(base & ~0xfu)) { /* nobody has placed it: the start of the window */
        set_config(slot, bar, 0xc0000000 + 0x10000 * slot + 0x4000 * (bar - 0x10) / 4);
        if ((base & 6) == 4)
            set_config(slot, bar + 4, 0);
        base = config(slot, bar);
    }
    return (volatile u8 *)(word)((base & ~0xfu) + config(slot, cap + 8));
}
static int find_device(void)
{
    unsigned slot = 0;
    while (slot < 32 && config(slot, 0) != 0x10441af4)
        slot++;
    if (slot == 32)
        return 0;
    common = notify = 0;
    for (unsigned cap = config(slot, 0x34) & 0xfc; cap; cap = config(slot, cap + 1) & 0xfc) {
        if ((config(slot, cap) & 0xff) != 9)
            continue;
        unsigned kind = config(slot, cap + 3) & 0xff;
        if (kind == 1)
            common = structure(slot, cap);
        if (kind == 2) {
            notify = structure(slot, cap);
            notify_step = config(slot, cap + 16);
        }
    }
    set_config(slot, 4, 6); /* memory, bus master */
    return common && notify;
}
#define C8(at) (*(volatile u8 *)(common + (at)))
#define C16(at) (*(volatile u16 *)(common + (at)))
#define C32(at) (*(volatile u32 *)(common + (at)))
static int start_device(void)
{
    if (!find_device())
        return 0;
    u8 *page = new_page();
    table = (void *)page;
    avail = (void *)(page + 0x400);
    used = (void *)(page + 0x800);
    C8(0x14) = 0;
    while (C8(0x14))
        pause();
    C8(0x14) = 1;
    C8(0x14) = 3;
    C32(8) = 0;
    C32(12) = 0;
    C32(8) = 1;
    C32(12) = 1; /* VERSION_1 */
    C8(0x14) = 0xb;
    EXPECT_EQ(C8(0x14), 0xb);
    C16(0x16) = 0;
    C16(0x18) = 8;
    C32(0x20) = (word)page;
    C32(0x24) = 0;
    C32(0x28) = (word)avail;
    C32(0x2c) = 0;
    C32(0x30) = (word)used;
    C32(0x34) = 0;
    notify += notify_step * C16(0x1e);
    C16(0x1c) = 1;
    C8(0x14) = 0xf;
    return 1;
}
/* The device writes `len` bytes at `to`. */
static void dma(void *to, u32 len)
{
    u16 before = used[1];
    table[0].address = (word)to;
    table[0].len = len;
    table[0].flags = 2;
    avail[2 + (avail[1] & 7)] = 0;
    asm volatile("mfence" : : : "memory");
    avail[1]++;
    asm volatile("mfence" : : : "memory");
    *(volatile u16 *)notify = 0;
    while (used[1] == before)
        pause();
}

/* ---- code: `mov eax, imm32; ret` ---- */
typedef u32 (*function)(void);
static function put_code(u8 *at)
{
    static const u8 code[] = {0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(at, code, sizeof code);
    asm volatile("cpuid" : : "a"(0) : "rbx", "rcx", "rdx", "memory");
    return (function)at;
}
#define ROUNDS 16
static void rounds(u8 *code, function run)
{
    int changed = 0;
    for (int n = 0; n < ROUNDS; n++) {
        u32 old = 0;
        for (int i = 0; i < 200; i++)
            old = run();
        dma(code + 1, 4);
        u32 now = run(), want;
        memcpy(&want, code + 1, 4);
        if (now != want) {
            fail("round %d: the code says 0x%x, its bytes 0x%x", n, now, want);
            return;
        }
        changed += now != old;
    }
    EXPECT(changed >= ROUNDS - 1);
}

TEST(code_written_by_dma)
{
    NEED(start_device());
    u8 *page = new_page();
    rounds(page + 64, put_code(page + 64));
}
TEST(code_written_by_dma_over_pages)
{
    NEED(start_device());
    u8 *one = new_page(), *two = new_page();
    EXPECT_EQ((word)two, (word)one + 4096);
    rounds(two - 3, put_code(two - 3));
}
TEST(code_written_by_dma_run_by_another_address)
{
    NEED(start_device());
    u8 *page = new_page();
    put_code(page + 64);
    map_page(TEST_VA, (word)page, P_P, 1);
    rounds(page + 64, (function)(TEST_VA + 64));
}
/* Beside the code, in its page, and one byte of it. */
TEST(dma_beside_code)
{
    NEED(start_device());
    u8 *page = new_page();
    function run = put_code(page + 64);
    for (int n = 0; n < ROUNDS; n++) {
        u32 old = run();
        dma(page + 128, 64);
        EXPECT_EQ(run(), old);
        dma(page + 65 + n % 4, 1);
        u32 want;
        memcpy(&want, page + 65, 4);
        EXPECT_EQ(run(), want);
    }
}

static function volatile shared_code;
static volatile u32 ready, seen;
static void until_it_changes(u32 index)
{
    (void)index;
    function run = shared_code;
    ready = 1;
    u32 value;
    do
        value = run();
    while (!value);
    seen = value;
}
TEST(code_of_a_running_cpu_written_by_dma)
{
    NEED(start_device());
    u8 *page = new_page();
    shared_code = put_code(page + 64);
    ready = seen = 0;
    if (!start_ap(1, until_it_changes)) {
        fail("CPU 1 does not start");
        return;
    }
    while (!ready)
        pause();
    u32 want = 0;
    while (!want) {
        dma(page + 65, 4);
        memcpy(&want, page + 65, 4);
    }
    while (!seen)
        pause();
    EXPECT_EQ(seen, want);
}
