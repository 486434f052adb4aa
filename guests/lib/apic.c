/* The interrupt controllers, a delay, and starting other CPUs. */
#include "guest.h"

static volatile u32 *apic(unsigned reg) { return (volatile u32 *)(word)(APIC_BASE + reg); }
u32 apic_read(unsigned reg) { return *apic(reg); }
void apic_write(unsigned reg, u32 value) { *apic(reg) = value; }
void apic_enable(void) { apic_write(0xf0, 0x1ff); }

void pic_remap(void)
{
    static const u8 words[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28}, {0x21, 4},
                                  {0xa1, 2},    {0x21, 1},    {0xa1, 1},    {0x21, 0xff}, {0xa1, 0xff}};
    for (unsigned i = 0; i < sizeof words / sizeof words[0]; i++)
        outb(words[i][0], words[i][1]);
}

void delay_us(u32 us)
{
    u32 ticks = us * 1193 / 1000 + 1; /* 1.193182 MHz */
    while (ticks) {
        u32 n = ticks > 0xffff ? 0xffff : ticks;
        ticks -= n;
        outb(0x61, (inb(0x61) & ~2) | 1);
        outb(0x43, 0xb0); /* channel 2, mode 0: OUT rises at the terminal count */
        outb(0x42, (u8)n);
        outb(0x42, (u8)(n >> 8));
        while (!(inb(0x61) & 0x20))
            pause();
    }
}

#ifdef __x86_64__
u8 ap_stacks[MAX_AP][2][AP_STACK] __attribute__((aligned(16)));
extern const u8 ap_trampoline[], ap_trampoline_end[];
extern u64 ap_cr3, ap_index, ap_stack;
static struct tss ap_tss[MAX_AP];
static u64 ap_gdt[MAX_AP][GDT_SLOTS];
static void (*volatile ap_entry)(u32);
static volatile u32 ap_up;
void ap_main(u32 index);

void ap_main(u32 index)
{
    u64 *table = ap_gdt[index];
    memcpy(table, gdt, sizeof gdt);
    struct tss *t = &ap_tss[index];
    memset(t, 0, sizeof *t);
    t->ist[0] = (word)(ap_stacks[index][1] + AP_STACK);
    t->rsp[0] = t->ist[0];
    t->iomap = 0xffff;
    u64 base = (word)t;
    table[TSS_SEL >> 3] = descriptor((u32)base, 103, 0x89, 0);
    table[(TSS_SEL >> 3) + 1] = base >> 32;
    struct { u16 limit; word base; } __attribute__((packed)) g = {sizeof gdt - 1, (word)table},
                                                             i = {sizeof idt - 1, (word)idt};
    asm volatile("lgdt %0; lidt %1; ltr %w2" : : "m"(g), "m"(i), "r"(TSS_SEL) : "memory");
    apic_enable();
    void (*entry)(u32) = ap_entry;
    ap_up = 1;
    entry(index);
    for (;;)
        asm volatile("cli; hlt");
}

static void ipi(u32 apic_id, u32 command)
{
    apic_write(0x310, apic_id << 24);
    apic_write(0x300, command);
    while (apic_read(0x300) & 0x1000)
        pause();
}

int start_ap(u32 apic_id, void (*entry)(u32 index))
{
    if (!apic_id || apic_id > MAX_AP)
        return 0;
    u32 index = apic_id - 1;
    u8 *low = (u8 *)0x7000;
    asm("" : "+r"(low)); /* a constant address is no array of size 0 */
    memcpy(low, ap_trampoline, (size_t)(ap_trampoline_end - ap_trampoline));
    u64 *slot = (u64 *)(low + ((u8 *)&ap_cr3 - ap_trampoline));
    slot[0] = read_cr3();
    slot[1] = index;
    slot[2] = (word)(ap_stacks[index][0] + AP_STACK - 8);
    ap_entry = entry;
    ap_up = 0;
    apic_enable();
    ipi(apic_id, 0x4500); /* INIT */
    delay_us(200);
    ipi(apic_id, 0x4607); /* start at 0x7000 */
    for (int i = 0; i < 20000 && !ap_up; i++) {
        if (i == 100)
            ipi(apic_id, 0x4607);
        delay_us(100);
    }
    return (int)ap_up;
}
#endif
