/* Descriptor tables and the state in which each case starts. */
#include "guest.h"

u64 gdt[GDT_SLOTS] __attribute__((aligned(4096)));
u64 ldt[32] __attribute__((aligned(16)));
struct gate idt[256] __attribute__((aligned(4096)));
struct tss tss __attribute__((aligned(4096)));
static u8 trap_stack[16384] __attribute__((aligned(16)));
void reset_pages(void);

u64 descriptor(u32 base, u32 limit, u8 access, u8 flags)
{
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
           (u64)flags << 52 | (u64)(base >> 24) << 56;
}

void set_gdt(unsigned selector, u64 value) { gdt[selector >> 3] = value; }

void set_limits(u16 gdt_limit, u16 idt_limit)
{
    struct { u16 limit; word base; } __attribute__((packed)) g = {gdt_limit, (word)gdt}, i = {idt_limit, (word)idt};
    asm volatile("lgdt %0; lidt %1" : : "m"(g), "m"(i) : "memory");
}

void set_gate(unsigned vector, u16 selector, const void *offset, u8 type, u8 ist)
{
    word at = (word)offset;
#ifdef __x86_64__
    idt[vector] = (struct gate){(u16)at, selector, ist, type, (u16)(at >> 16), (u32)(at >> 32), 0};
#else
    idt[vector] = (struct gate){(u16)at, selector, ist, type, (u16)(at >> 16)};
#endif
}

#ifdef __x86_64__
void set_gdt16(unsigned selector, u64 base, u32 limit, u8 access)
{
    gdt[selector >> 3] = descriptor((u32)base, limit, access, 0);
    gdt[(selector >> 3) + 1] = base >> 32;
}

void call_gate(unsigned selector, u16 target, word offset, u8 access)
{
    gdt[selector >> 3] = (offset & 0xffff) | (u64)target << 16 | (u64)access << 40 | (offset >> 16 & 0xffff) << 48;
    gdt[(selector >> 3) + 1] = offset >> 32;
}
#else
void call_gate(unsigned selector, u16 target, word offset, u8 access, u8 words)
{
    gdt[selector >> 3] =
        (offset & 0xffff) | (u64)target << 16 | (u64)words << 32 | (u64)access << 40 | (u64)(offset >> 16) << 48;
}
#endif

static void base_tables(void)
{
    memset(gdt, 0, sizeof gdt);
    memset(ldt, 0, sizeof ldt);
#ifdef __x86_64__
    set_gdt(KCS, descriptor(0, 0xfffff, 0x9b, G4K | LM));
#else
    set_gdt(KCS, descriptor(0, 0xfffff, 0x9b, G4K | DB));
#endif
    set_gdt(KDS, descriptor(0, 0xfffff, 0x93, G4K | DB));
    set_gdt(KCS32, descriptor(0, 0xfffff, 0x9b, G4K | DB));
    set_gdt(KCS16, descriptor(0, 0xfffff, 0x9b, G4K));
    set_gdt(UCS32, descriptor(0, 0xfffff, 0xfb, G4K | DB));
    set_gdt(UDS, descriptor(0, 0xfffff, 0xf3, G4K | DB));
    set_gdt(UCS64, descriptor(0, 0xfffff, 0xfb, G4K | LM));
    set_gdt(KDS16, descriptor(0, 0xfffff, 0x93, G4K));
    memset(&tss, 0, sizeof tss);
    tss.iomap = offsetof(struct tss, map);
    memset(tss.map, 0xff, sizeof tss.map);
    word top = (word)(trap_stack + sizeof trap_stack);
#ifdef __x86_64__
    tss.rsp[0] = tss.ist[0] = top;
    set_gdt16(TSS_SEL, (word)&tss, sizeof tss - 1, 0x89);
    set_gdt16(LDT_SEL, (word)ldt, sizeof ldt - 1, 0x82);
#else
    tss.esp0 = top;
    tss.ss0 = KDS;
    set_gdt(TSS_SEL, descriptor((word)&tss, sizeof tss - 1, 0x89, 0));
    set_gdt(LDT_SEL, descriptor((word)ldt, sizeof ldt - 1, 0x82, 0));
#endif
    for (unsigned v = 0; v < 256; v++)
#ifdef __x86_64__
        set_gate(v, KCS, STUB(v), GATE_INT, 1);
#else
        set_gate(v, KCS, STUB(v), GATE_INT, 0);
#endif
    set_gate(V_DONE, KCS, STUB(V_DONE), GATE_INT | 0x60, idt[0].
#ifdef __x86_64__
             ist
#else
             count
#endif
    );
}

void baseline(void)
{
    cli();
    memset(handlers, 0, sizeof handlers);
    base_tables();
    write_dr7(0x400);
    write_dr6(0xffff0ff0);
#ifdef __x86_64__
    write_cr0(CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE);
    write_cr4(CR4_PAE); /* SMEP goes before the identity map becomes the user's again */
    reset_pages();
    write_cr3((word)pml4);
    wrmsr(MSR_EFER, EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE);
#else
    write_cr0(CR0_NE | CR0_ET | CR0_MP | CR0_PE);
    write_cr4(0);
    write_cr3(0);
    if (HAS(CX_EDX, 20) || HAS(CX_EDX, 29))
        wrmsr(MSR_EFER, 0);
    reset_pages();
#endif
    set_limits(sizeof gdt - 1, sizeof idt - 1);
    asm volatile("lldt %w0; ltr %w1" : : "r"(0), "r"(TSS_SEL) : "memory");
    asm volatile("mov %0,%%ds; mov %0,%%es; mov %0,%%ss" : : "r"(KDS));
    asm volatile("mov %0,%%fs; mov %0,%%gs" : : "r"(0));
    asm volatile("push $0; popf" : : : "memory", "cc");
}
