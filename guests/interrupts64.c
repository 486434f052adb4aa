/* External interrupts: STI and MOV SS shadows, HLT, NMI and its blocking, the local APIC (timer in all
 * modes, IPIs, priorities, x2APIC), the I/O APIC and the PIC through the test device's lines, the PIT.
 * SDM vol. 3 chapter 11 (APIC), sections 7.7, 7.8; 82093AA; 8259A; 8254. */
#include "guest.h"

#define VEC 0x40
#define SPIN_LIMIT 50000000

static volatile u32 hits;
static void count(struct regs *frame)
{
    (void)frame;
    hits++;
    apic_write(0xb0, 0);
}
static void wait_for_hit(void)
{
    asm volatile("sti");
    for (u32 i = 0; i < SPIN_LIMIT && !hits; i++)
        pause();
    cli();
}
static void start(void)
{
    apic_enable();
    apic_write(0x80, 0);
    apic_write(0x320, 0x10000); /* timer masked */
    apic_write(0x350, 0x10000);
    apic_write(0x360, 0x10000);
    /* What a timer of the case before has left pending is taken now. */
    handlers[VEC] = count;
    asm volatile("sti; nop; nop; cli");
    handlers[VEC] = NULL;
    hits = 0;
}
static void self_ipi(u32 vector) { apic_write(0x300, 0x40000 | vector); }

TEST(apic_identity)
{
    u32 version = apic_read(0x30);
    EXPECT((version & 0xff) >= 0x10 && (version & 0xff) <= 0x15);
    EXPECT((version >> 16 & 0xff) >= 3);
    EXPECT_EQ(rdmsr(0x1b) & 0xfffff000, APIC_BASE);
    EXPECT_EQ(rdmsr(0x1b) >> 8 & 9, 9); /* BSP, enabled */
}

TEST(self_ipi_is_held_until_sti)
{
    start();
    self_ipi(VEC);
    struct regs r = kernel_regs();
    RUN(&r, "nop; nop; sti; nop; nop");
    TRAPPED(&r, VEC, 0, 4); /* one instruction after STI */
    EXPECT_EQ(r.flags & F_IF, F_IF);
    apic_write(0xb0, 0);
}

TEST(sti_shadow_only_when_if_was_clear)
{
    start();
    struct regs r = kernel_regs();
    self_ipi(VEC);
    RUN(&r, "sti; cli; nop"); /* STI; CLI: never seen */
    DONE(&r);
    r = kernel_regs();
    RUN(&r, "sti; sti; nop"); /* the second STI is no shadow */
    EXPECT_EQ(r.vector, VEC);
    EXPECT_EQ(r.ip - r.start, 2);
    apic_write(0xb0, 0);
}

TEST(mov_ss_shadow)
{
    start();
    self_ipi(VEC);
    struct regs r = kernel_regs();
    r.ax = KDS;
    r.flags |= F_IF;
    r.cs = KCS;
    /* Taken right behind run_at's IRET, before the first instruction. */
    RUN(&r, "nop; mov ss, eax; nop; nop");
    TRAPPED(&r, VEC, 0, 0);
    apic_write(0xb0, 0);
    self_ipi(VEC);
    r = kernel_regs();
    r.ax = KDS;
    RUN(&r, "sti; mov ss, eax; nop; nop"); /* STI's shadow covers MOV SS, MOV SS's covers the NOP */
    EXPECT(r.vector == VEC && (r.ip - r.start == 3 || r.ip - r.start == 4));
    apic_write(0xb0, 0);
}

TEST(popf_enables_at_once)
{
    start();
    self_ipi(VEC);
    struct regs r = kernel_regs();
    RUN(&r, "push 0x202; popfq; nop");
    TRAPPED(&r, VEC, 0, 6);
    apic_write(0xb0, 0);
}

TEST(sti_hlt_wakes)
{
    start();
    self_ipi(VEC);
    struct regs r = kernel_regs();
    RUN(&r, "sti; hlt; nop"); /* HLT is in the shadow: it halts, and the interrupt wakes it */
    TRAPPED(&r, VEC, 0, 2);
    apic_write(0xb0, 0);
}

TEST(priority_order)
{
    start();
    self_ipi(0x45);
    self_ipi(0x91);
    self_ipi(0x92);
    self_ipi(0x33);
    static const u32 order[] = {0x92, 0x91, 0x45, 0x33};
    for (unsigned i = 0; i < 4; i++) {
        struct regs r = kernel_regs();
        r.flags |= F_IF;
        RUN(&r, "nop");
        EXPECT_EQ(r.vector, order[i]);
        apic_write(0xb0, 0);
    }
}

TEST(task_priority_masks)
{
    start();
    apic_write(0x80, 0x40);
    self_ipi(0x4f);
    struct regs r = kernel_regs();
    r.flags |= F_IF;
    RUN(&r, "nop");
    DONE(&r);
    EXPECT_EQ(apic_read(0x220) >> 15 & 1, 1); /* IRR: vectors 0x40-0x5f */
    self_ipi(0x50);
    r = kernel_regs();
    r.flags |= F_IF;
    RUN(&r, "nop");
    EXPECT_EQ(r.vector, 0x50);
    EXPECT_EQ(apic_read(0xa0) & 0xf0, 0x50); /* PPR from the ISR */
    EXPECT_EQ(apic_read(0x120) >> 16 & 1, 1);
    apic_write(0xb0, 0);
    EXPECT_EQ(apic_read(0x120), 0);
    r = kernel_regs(); /* lowering CR8 lets it through after the next instruction boundary */
    r.flags |= F_IF;
    RUN(&r, "xor eax, eax; mov cr8, rax; nop; nop");
    EXPECT_EQ(r.vector, 0x4f);
    apic_write(0xb0, 0);
}

TEST(in_service_blocks_same_class)
{
    start();
    self_ipi(0x41);
    struct regs r = kernel_regs();
    r.flags |= F_IF;
    RUN(&r, "nop");
    EXPECT_EQ(r.vector, 0x41);
    self_ipi(0x4e);
    r = kernel_regs();
    r.flags |= F_IF;
    RUN(&r, "nop"); /* without EOI */
    DONE(&r);
    apic_write(0xb0, 0);
    r = kernel_regs();
    r.flags |= F_IF;
    RUN(&r, "nop");
    EXPECT_EQ(r.vector, 0x4e);
    apic_write(0xb0, 0);
}

TEST(illegal_vector_sets_esr)
{
    start();
    apic_write(0x280, 0);
    apic_write(0x280, 0);
    EXPECT_EQ(apic_read(0x280), 0);
    self_ipi(5);
    apic_write(0x280, 0);
    EXPECT((apic_read(0x280) & 0x60) != 0); /* send or receive illegal vector */
    apic_write(0x280, 0);
}

TEST(timer_one_shot)
{
    start();
    handlers[VEC] = count;
    apic_write(0x3e0, 3); /* divide by 16 */
    apic_write(0x320, VEC);
    apic_write(0x380, 1000);
    wait_for_hit();
    EXPECT_EQ(hits, 1);
    EXPECT_EQ(apic_read(0x390), 0); /* stays at 0 */
    delay_us(2000);
    asm volatile("sti; nop; nop; cli");
    EXPECT_EQ(hits, 1);
}

TEST(timer_periodic)
{
    start();
    handlers[VEC] = count;
    apic_write(0x3e0, 3);
    apic_write(0x320, VEC | 0x20000);
    apic_write(0x380, 5000);
    asm volatile("sti");
    for (u32 i = 0; i < SPIN_LIMIT && hits < 5; i++)
        pause();
    cli();
    EXPECT(hits >= 5);
    apic_write(0x380, 0); /* stops it */
    asm volatile("sti; nop; nop; cli");
    hits = 0;
    delay_us(2000);
    asm volatile("sti; nop; nop; cli");
    EXPECT_EQ(hits, 0);
}

TEST(timer_masked_counts_silently)
{
    start();
    apic_write(0x3e0, 0xb); /* divide by 1 */
    apic_write(0x320, VEC | 0x10000);
    apic_write(0x380, 0xffffffff);
    u32 a = apic_read(0x390);
    delay_us(100);
    u32 b = apic_read(0x390);
    EXPECT(b < a);
    apic_write(0x380, 0);
    EXPECT_EQ(apic_read(0x390), 0);
}

TEST(timer_tsc_deadline)
{
    NEED(HAS_DEADLINE);
    start();
    handlers[VEC] = count;
    apic_write(0x320, VEC | 0x40000);
    asm volatile("mfence");
    wrmsr(0x6e0, rdtsc() + 1000000);
    EXPECT(rdmsr(0x6e0) != 0 || hits == 0);
    wait_for_hit();
    EXPECT_EQ(hits, 1);
    EXPECT_EQ(rdmsr(0x6e0), 0); /* disarmed */
    hits = 0;
    wrmsr(0x6e0, rdtsc() + (1ull << 40));
    wrmsr(0x6e0, 0); /* disarm */
    asm volatile("sti; nop; nop; cli");
    EXPECT_EQ(hits, 0);
    wrmsr(0x6e0, 1); /* in the past: at once */
    wait_for_hit();
    EXPECT_EQ(hits, 1);
    apic_write(0x320, 0x10000); /* one-shot mode: the MSR reads 0 and writes are ignored */
    wrmsr(0x6e0, 12345);
    EXPECT_EQ(rdmsr(0x6e0), 0);
}

TEST(hlt_wakes_by_timer)
{
    start();
    apic_write(0x3e0, 3);
    apic_write(0x320, VEC);
    apic_write(0x380, 100000);
    struct regs r = kernel_regs();
    RUN(&r, "sti; hlt; nop");
    TRAPPED(&r, VEC, 0, 2);
    apic_write(0xb0, 0);
}

TEST(nmi_by_ipi)
{
    start();
    apic_write(0x310, apic_read(0x20));
    struct regs r = kernel_regs();
    r.ax = APIC_BASE + 0x300;
    RUN(&r, "mov dword ptr [rax], 0x400; nop; nop; nop; nop; mfence; nop; nop"); /* delivery mode NMI, IF is clear */
    EXPECT_EQ(r.vector, V_NMI);
}

static volatile u32 nmis, nested, in_nmi;
static void nmi_handler(struct regs *frame)
{
    (void)frame;
    nmis++;
    if (in_nmi)
        nested = 1;
    in_nmi = 1;
    if (nmis == 1) {
        apic_write(0x300, 0x400); /* another: must wait for our IRET */
        for (int i = 0; i < 1000; i++)
            pause();
    }
    in_nmi = 0;
}

TEST(nmi_blocks_nmi_until_iret)
{
    start();
    nmis = nested = in_nmi = 0;
    handlers[V_NMI] = nmi_handler;
    apic_write(0x310, apic_read(0x20));
    apic_write(0x300, 0x400);
    for (u32 i = 0; i < 1000000 && nmis < 2; i++)
        pause();
    EXPECT_EQ(nmis, 2);
    EXPECT_EQ(nested, 0);
}

TEST(nmi_wakes_hlt)
{
    start();
    nmis = 1; /* no second one */
    handlers[V_NMI] = nmi_handler;
    apic_write(0x310, apic_read(0x20));
    struct regs r = kernel_regs();
    r.ax = APIC_BASE + 0x300;
    RUN(&r, "mov dword ptr [rax], 0x400; mfence; nop");
    DONE(&r);
    EXPECT_EQ(nmis, 2);
}

TEST(interrupt_at_user_level)
{
    start();
    self_ipi(VEC);
    struct regs r = user_regs();
    r.flags |= F_IF;
    RUN(&r, "nop");
    EXPECT_EQ(r.vector, VEC);
    EXPECT_EQ(r.cs, UCS64);
    EXPECT_EQ(r.error, 0);
    apic_write(0xb0, 0);
}

TEST(interrupts_in_a_long_string)
{
    /* A `rep` string is interrupted between iterations and resumed: nothing lost, nothing done twice. */
    start();
    handlers[VEC] = count;
    u8 *to = (u8 *)0x1000000;
    memset(to, 0, 8 << 20);
    apic_write(0x3e0, 0xb);
    apic_write(0x320, VEC | 0x20000);
    apic_write(0x380, 50000);
    asm volatile("sti");
    word n = 8 << 20;
    u8 *d = to;
    asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(0x5a) : "memory");
    for (u32 i = 0; i < SPIN_LIMIT && !hits; i++)
        pause();
    cli();
    apic_write(0x380, 0);
    EXPECT_EQ(n, 0);
    EXPECT_EQ((word)d, (word)to + (8 << 20));
    EXPECT_EQ(to[0] == 0x5a && to[(8 << 20) - 1] == 0x5a && to[(8 << 20)] == 0, 1);
    EXPECT(hits >= 1);
}

static void line(unsigned irq, int level) { outb((u16)(0x2000 + irq), (u8)level); }
#define IOAPIC ((volatile u32 *)0xfec00000ul)
static void ioapic_write(u32 reg, u32 value)
{
    IOAPIC[0] = reg;
    IOAPIC[4] = value;
}
static u32 ioapic_read(u32 reg)
{
    IOAPIC[0] = reg;
    return IOAPIC[4];
}
static void ioapic_pin(unsigned pin, u32 low)
{
    ioapic_write(0x10 + 2 * pin + 1, apic_read(0x20)); /* destination: this CPU */
    ioapic_write(0x10 + 2 * pin, low);
}
/* Is there QEMU's test device? */
static int have_lines(void)
{
    outl(0xe0, 0x12345678);
    return inl(0xe0) == 0x12345678;
}

TEST(ioapic_edge)
{
    NEED(have_lines());
    start();
    handlers[VEC] = count;
    EXPECT((ioapic_read(1) >> 16 & 0xff) >= 23);
    ioapic_pin(11, VEC);
    asm volatile("sti");
    line(11, 1);
    for (u32 i = 0; i < 1000000 && !hits; i++)
        pause();
    EXPECT_EQ(hits, 1); /* one edge, although the line stays up */
    line(11, 0);
    line(11, 1);
    for (u32 i = 0; i < 1000000 && hits < 2; i++)
        pause();
    EXPECT_EQ(hits, 2);
    cli();
    line(11, 0);
    ioapic_pin(11, 0x10000);
}

static void level_handler(struct regs *frame)
{
    (void)frame;
    if (++hits == 3)
        line(11, 0);
    apic_write(0xb0, 0);
}

TEST(ioapic_level)
{
    NEED(have_lines());
    start();
    handlers[VEC] = level_handler;
    ioapic_pin(11, VEC | 0x8000);
    asm volatile("sti");
    line(11, 1); /* comes again after each EOI until the line falls */
    for (u32 i = 0; i < 1000000 && hits < 3; i++)
        pause();
    for (int i = 0; i < 1000; i++)
        pause();
    cli();
    EXPECT_EQ(hits, 3);
    EXPECT_EQ(ioapic_read(0x10 + 22) & 0x4000, 0); /* remote IRR clear again */
    ioapic_pin(11, 0x10000);
}

TEST(ioapic_masked_edge)
{
    NEED(have_lines());
    start();
    handlers[VEC] = count;
    ioapic_pin(11, VEC | 0x10000);
    line(11, 1);
    line(11, 0);
    ioapic_pin(11, VEC); /* the edge while masked is lost */
    asm volatile("sti; nop; nop; nop; cli");
    EXPECT_EQ(hits, 0);
    ioapic_pin(11, 0x10000);
}

TEST(pic_through_lint0)
{
    NEED(have_lines());
    start();
    apic_write(0x350, 0x700); /* ExtINT */
    outb(0xa1, 0xff & ~(1 << 3)); /* IRQ 11 */
    outb(0x21, 0xff & ~(1 << 2));
    line(11, 0);
    line(11, 1);
    struct regs r = kernel_regs();
    r.flags |= F_IF;
    RUN(&r, "nop; nop; nop; nop; nop; nop; nop; nop");
    EXPECT_EQ(r.vector, 0x2b);
    outb(0xa0, 0x0b); /* read the ISR */
    EXPECT_EQ(inb(0xa0), 1 << 3);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    EXPECT_EQ(inb(0xa0), 0);
    line(11, 0);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    apic_write(0x350, 0x10000);
}

TEST(pit_through_the_pic)
{
    start();
    apic_write(0x350, 0x700);
    outb(0x43, 0x34); /* channel 0, rate generator */
    outb(0x40, 0x00);
    outb(0x40, 0x10); /* 3.4 ms */
    outb(0x21, 0xfe);
    struct regs r = kernel_regs();
    RUN(&r, "sti; hlt; nop");
    EXPECT_EQ(r.vector, 0x20);
    outb(0x20, 0x20);
    r = kernel_regs();
    RUN(&r, "sti; hlt; nop"); /* and again */
    EXPECT_EQ(r.vector, 0x20);
    outb(0x20, 0x20);
    outb(0x21, 0xff);
    outb(0x43, 0x30); /* mode 0: no more edges after one */
    outb(0x40, 0xff);
    outb(0x40, 0xff);
    apic_write(0x350, 0x10000);
}

TEST(x2apic)
{
    NEED(HAS_X2APIC);
    start();
    u64 base = rdmsr(0x1b);
    u32 id = apic_read(0x20) >> 24;
    struct regs r = kernel_regs();
    r.cx = 0x802;
    RUN(&r, "rdmsr"); /* not in xAPIC mode */
    TRAPPED(&r, V_GP, 0, 0);
    wrmsr(0x1b, base | 0x400);
    EXPECT_EQ(rdmsr(0x802), id);
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x808, 0x20);
    EXPECT_EQ(rdmsr(0x808), 0x20);
    wrmsr(0x808, 0);
    wrmsr(0x83f, VEC); /* SELF IPI */
    r = kernel_regs();
    r.flags |= F_IF;
    RUN(&r, "nop");
    EXPECT_EQ(r.vector, VEC);
    wrmsr(0x80b, 0); /* EOI: only 0 may be written */
    r = kernel_regs();
    r.cx = 0x80b, r.ax = 1;
    RUN(&r, "wrmsr");
    TRAPPED(&r, V_GP, 0, 0);
    wrmsr(0x830, (u64)id << 32 | VEC); /* ICR in one write */
    r = kernel_regs();
    r.flags |= F_IF;
    RUN(&r, "nop");
    EXPECT_EQ(r.vector, VEC);
    wrmsr(0x80b, 0);
    static const u32 absent[] = {0x80e, 0x831, 0x809};
    for (unsigned i = 0; i < 3; i++) {
        r = kernel_regs();
        r.cx = absent[i];
        RUN(&r, "rdmsr");
        TRAPPED(&r, V_GP, 0, 0);
    }
    r = kernel_regs();
    r.cx = 0x802;
    RUN(&r, "wrmsr"); /* read-only */
    TRAPPED(&r, V_GP, 0, 0);
    r = kernel_regs();
    r.cx = 0x1b, r.ax = (word)(base & 0xffffffff), r.dx = (word)(base >> 32);
    RUN(&r, "wrmsr"); /* x2APIC to xAPIC is illegal */
    TRAPPED(&r, V_GP, 0, 0);
    wrmsr(0x1b, base & ~0xc00ull); /* through disabled */
    wrmsr(0x1b, base);
    apic_enable();
    EXPECT_EQ(apic_read(0x20) >> 24, id);
}
