/* Virtio devices under a driver that breaks every rule: wrong rings, loops, addresses that are no
 * memory, huge lengths, buffers that change in flight, registers in any order. A device may ignore all
 * of it or set DEVICE_NEEDS_RESET; after a reset it is as new, and the machine goes on. Virtio 1.2: 2.1
 * (status), 2.7 (split rings), 4.2 (MMIO). The places are those of Mimeo's `--transport mmio`. */
#include "guest.h"

#define BASE 0xfeb00000u
#define STEP 0x1000u
#define PLACES 32
#define MAGIC 0x74726976u

/* Registers. */
enum {
    R_MAGIC = 0x00, R_ID = 0x08, R_FEATURES = 0x10, R_FEATURES_SEL = 0x14, R_DRIVER = 0x20,
    R_DRIVER_SEL = 0x24, R_QUEUE_SEL = 0x30, R_QUEUE_MAX = 0x34, R_QUEUE_NUM = 0x38,
    R_QUEUE_READY = 0x44, R_NOTIFY = 0x50, R_ISR = 0x60, R_ACK = 0x64, R_STATUS = 0x70,
    R_DESC = 0x80, R_AVAIL = 0x90, R_USED = 0xa0
};
#define DRIVER_OK 4
#define NEEDS_RESET 0x40
#define D_NEXT 1
#define D_WRITE 2
#define D_INDIRECT 4

struct desc {
    u64 address;
    u32 length;
    u16 flags, next;
};
struct ring_used {
    u16 flags, index;
    struct {
        u32 id, length;
    } entries[256];
    u16 event;
};
struct ring_avail {
    u16 flags, index;
    u16 heads[256];
    u16 event;
};

#define SIZE 16u
#define MOST_QUEUES 4
/* The rings of each queue, a page apart; behind them a table and buffers for cases. */
static u8 rings[MOST_QUEUES][3][4096] __attribute__((aligned(4096)));
static struct desc table[256] __attribute__((aligned(16)));
static u8 buffers[8][4096] __attribute__((aligned(4096)));

static u32 base; /* the device under test */

static u32 get(u32 offset) { return *(volatile u32 *)(word)(base + offset); }
static void set(u32 offset, u32 value) { *(volatile u32 *)(word)(base + offset) = value; }

static u64 seed = 0x9e3779b97f4a7c15ull;
static u32 any(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (u32)(seed >> 16);
}
/* Values at which things break. */
static u64 edge(void)
{
    static const u64 values[] = {0, 1, 0xfff, 0x1000, 0x3ffffff, 0x4000000, 0xc0000000, 0xfeb00000,
                                 0xfec00000, 0xfee00000, 0xffffffff, 0x100000000ull,
                                 0xfffffffffffff000ull, 0xffffffffffffffffull};
    u32 n = any() % (sizeof values / sizeof values[0] + 3);
    if (n < sizeof values / sizeof values[0])
        return values[n];
    return n & 1 ? (u64)(word)buffers[any() % 8] : (u64)any() << 32 | any();
}

static void reset(void)
{
    set(R_STATUS, 0);
    /* Work in flight on the host comes back first. */
    for (u32 i = 0; i < 100000000 && get(R_STATUS); i++)
        pause();
    EXPECT_EQ(get(R_STATUS), 0);
    EXPECT_EQ(get(R_MAGIC), MAGIC);
}

static struct desc *descriptors(u32 q) { return (struct desc *)rings[q][0]; }
static struct ring_avail *avail(u32 q) { return (struct ring_avail *)rings[q][1]; }
static volatile struct ring_used *used(u32 q) { return (struct ring_used *)rings[q][2]; }

/* Brings the device up without the event index; gives the number of its queues, up to MOST_QUEUES. */
static u32 bring_up(void)
{
    reset();
    memset(rings, 0, sizeof rings);
    set(R_STATUS, 3);
    for (u32 half = 0; half < 2; half++) {
        set(R_FEATURES_SEL, half);
        u32 offered = get(R_FEATURES);
        set(R_DRIVER_SEL, half);
        set(R_DRIVER, half ? offered : offered & ~(1u << 29));
    }
    set(R_STATUS, 11);
    u32 q;
    for (q = 0; q < MOST_QUEUES; q++) {
        set(R_QUEUE_SEL, q);
        if (!get(R_QUEUE_MAX))
            break;
        set(R_QUEUE_NUM, SIZE);
        for (u32 part = 0; part < 3; part++) {
            set(R_DESC + 0x10 * part, (u32)(word)rings[q][part]);
            set(R_DESC + 0x10 * part + 4, 0);
        }
        set(R_QUEUE_READY, 1);
    }
    set(R_STATUS, 15);
    EXPECT_EQ(get(R_STATUS) & 15, 15);
    return q;
}

static void describe(struct desc *d, u64 address, u32 length, u16 flags, u16 next)
{
    *d = (struct desc){address, length, flags, next};
}

/* Makes `head` available in queue `q` and says so. */
static void offer(u32 q, u16 head)
{
    volatile struct ring_avail *ring = avail(q);
    ring->heads[ring->index % SIZE] = head;
    ring->index++;
    set(R_NOTIFY, q);
}

/* The device gave nothing back for a chain that is none, and wants a reset if it looked at it. */
static void expect_refused(u32 q)
{
    EXPECT_EQ(used(q)->index, 0);
    if (get(R_ID) == 4) /* entropy looks at once */
        EXPECT_EQ(get(R_STATUS) & NEEDS_RESET, NEEDS_RESET);
}

/* Entropy devices can be asked whether they still work. */
static void expect_alive(void)
{
    if (get(R_ID) != 4)
        return;
    bring_up();
    memset(buffers[0], 0, 64);
    describe(&descriptors(0)[0], (word)buffers[0], 64, D_WRITE, 0);
    offer(0, 0);
    EXPECT_EQ(used(0)->index, 1);
    u32 sum = 0;
    for (u32 i = 0; i < 64; i++)
        sum |= buffers[0][i];
    EXPECT(sum != 0);
    reset();
}

/* Runs `body` with each device and each of its queues brought up. */
static void each(void (*body)(u32 queue))
{
    u32 devices = 0;
    for (u32 place = 0; place < PLACES; place++) {
        base = BASE + place * STEP;
        if (get(R_MAGIC) != MAGIC)
            break;
        devices++;
        u32 queues = bring_up();
        for (u32 q = 0; q < queues; q++) {
            bring_up();
            body(q);
        }
        reset();
        expect_alive();
    }
    NEED(devices > 0);
}

static void loop(u32 q)
{
    for (u16 i = 0; i < 2; i++)
        describe(&descriptors(q)[i], (word)buffers[0], 16, D_NEXT, i ^ 1);
    offer(q, 0);
    expect_refused(q);
    bring_up();
    describe(&descriptors(q)[3], (word)buffers[0], 16, D_NEXT | D_WRITE, 3);
    offer(q, 3);
    expect_refused(q);
}
TEST(loops) { each(loop); }

static void missing(u32 q)
{
    offer(q, SIZE); /* no such descriptor */
    expect_refused(q);
    bring_up();
    describe(&descriptors(q)[0], (word)buffers[0], 16, D_NEXT, 0xffff);
    offer(q, 0);
    expect_refused(q);
    bring_up();
    avail(q)->index = SIZE + 1; /* more than the ring holds */
    set(R_NOTIFY, q);
    expect_refused(q);
}
TEST(descriptors_that_do_not_exist) { each(missing); }

static void nowhere(u32 q)
{
    static const u64 places[] = {0x4000000 - 8, 0x4000000, 0xfeb00000, 0xfee00000, 0xfffffff0,
                                 0xfffffffffffffff0ull, 0x8000000000000000ull};
    for (u32 i = 0; i < sizeof places / sizeof places[0]; i++) {
        bring_up();
        describe(&descriptors(q)[0], places[i], 0x1000, D_WRITE, 0);
        offer(q, 0);
        expect_refused(q);
        bring_up();
        describe(&descriptors(q)[0], places[i], 0x1000, 0, 0);
        offer(q, 0);
        expect_refused(q);
    }
}
TEST(buffers_that_are_not_memory) { each(nowhere); }

static void indirect(u32 q)
{
    static const u32 lengths[] = {0, 1, 15, 17, 0xfffffff0, 0xffffffff};
    for (u32 i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        bring_up();
        describe(&descriptors(q)[0], (word)table, lengths[i], D_INDIRECT, 0);
        offer(q, 0);
        EXPECT_EQ(used(q)->index, 0);
    }
    bring_up(); /* a table in a table, and one that leads to itself */
    describe(&table[0], (word)table, 16, D_INDIRECT, 0);
    describe(&descriptors(q)[0], (word)table, 16, D_INDIRECT, 0);
    offer(q, 0);
    expect_refused(q);
    bring_up();
    describe(&table[0], (word)buffers[0], 16, D_NEXT, 0);
    describe(&descriptors(q)[0], (word)table, 16, D_INDIRECT, 0);
    offer(q, 0);
    expect_refused(q);
}
TEST(indirect_tables) { each(indirect); }

/* Rings that overlap each other, the device's own buffers, or nothing. */
static void places(u32 q)
{
    memset(buffers, 0, sizeof buffers);
    for (u32 i = 0; i < 40; i++) {
        reset();
        set(R_STATUS, 3);
        set(R_DRIVER_SEL, 1);
        set(R_DRIVER, 1);
        set(R_STATUS, 11);
        set(R_QUEUE_SEL, q);
        set(R_QUEUE_NUM, 1u << any() % 17);
        for (u32 part = 0; part < 3; part++) {
            u64 at = edge();
            set(R_DESC + 0x10 * part, (u32)at);
            set(R_DESC + 0x10 * part + 4, (u32)(at >> 32));
        }
        set(R_QUEUE_READY, 1);
        set(R_STATUS, 15);
        set(R_NOTIFY, q);
    }
}
/* Whatever a device writes into such rings, it must not be into this program. */
TEST(rings_anywhere)
{
    u32 devices = 0;
    for (u32 place = 0; place < PLACES; place++) {
        base = BASE + place * STEP;
        if (get(R_MAGIC) != MAGIC)
            break;
        devices++;
        u32 queues = bring_up();
        for (u32 q = 0; q < queues; q++)
            places(q);
        reset();
        expect_alive();
    }
    NEED(devices > 0);
}

/* One descriptor of any kind, its memory inside the program's buffers or nowhere. */
static void scramble(struct desc *d)
{
    u64 at = (word)buffers[any() % 8] + any() % 4096;
    u32 length = any() % 3 ? any() % 8192 : any();
    /* Within the buffers, or far from all RAM. */
    if (at + length > (word)buffers + sizeof buffers) {
        if (any() % 2)
            length = (u32)((word)buffers + sizeof buffers - at);
        else
            at = 0x4000000ull + any();
    }
    describe(d, at, length, any() & 7, any() % (SIZE + 2));
    if (d->flags & D_INDIRECT)
        describe(d, (word)table, any() % 300 * 16, D_INDIRECT, 0);
}

static void in_flight(u32 q)
{
    for (u32 round = 0; round < 40; round++) {
        bring_up();
        for (u32 i = 0; i < SIZE; i++)
            scramble(&descriptors(q)[i]);
        for (u32 i = 0; i < 256; i++)
            scramble(&table[i]);
        /* A disk's requests begin with a type and a sector. */
        for (u32 i = 0; i < 8; i++)
            for (u32 w = 0; w < 4; w++)
                ((u32 *)buffers[i])[w] = any() % 15;
        for (u32 i = 0; i < SIZE; i++) {
            offer(q, any() % SIZE);
            scramble(&descriptors(q)[any() % SIZE]);
            scramble(&table[any() % 256]);
        }
        if (round % 4 == 0)
            avail(q)->index = any();
        set(R_NOTIFY, q);
        set(R_NOTIFY, any());
    }
}
TEST(changes_in_flight) { each(in_flight); }

TEST(registers_in_any_order)
{
    u32 devices = 0;
    for (u32 place = 0; place < PLACES; place++) {
        base = BASE + place * STEP;
        if (get(R_MAGIC) != MAGIC)
            break;
        devices++;
        for (u32 i = 0; i < 3000; i++) {
            u32 offset = any() % 4 ? any() % 0x40 * 4 : 0x100 + any() % 0x300;
            switch (any() % 4) {
            case 0: (void)*(volatile u8 *)(word)(base + offset); break;
            case 1: (void)*(volatile u32 *)(word)(base + (offset & ~3u)); break;
            case 2: *(volatile u16 *)(word)(base + (offset & ~1u)) = any(); break;
            default:
                /* Ring addresses stay away from the program. */
                if (offset >= R_DESC && offset < R_USED + 8)
                    set(offset & ~3u, 0xfffff000);
                else
                    set(offset & ~3u, any() % 2 ? any() : any() % 16);
            }
        }
        reset();
        expect_alive();
    }
    NEED(devices > 0);
}
