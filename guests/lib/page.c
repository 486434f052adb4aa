/* Pages for cases, and in 64-bit programs the tables of the identity map and of what cases add to it. */
#include "guest.h"

#define POOL_PAGES 64
static u8 pool[POOL_PAGES][4096] __attribute__((aligned(4096)));
static unsigned pool_used;

void reset_pages(void);

void *new_page(void)
{
    if (pool_used == POOL_PAGES) {
        fail("the guest's page pool is empty");
        give_up();
    }
    return memset(pool[pool_used++], 0, 4096);
}

#ifdef __x86_64__
extern u64 base_pdpt[512], base_pd[2048];

void identity_user(int user)
{
    pml4[0] = (word)base_pdpt | P_P | P_W | P_A | (user ? P_U : 0);
    write_cr3(read_cr3());
}

u64 *entry_of(u64 va, int level)
{
    u64 *table = pml4;
    for (int l = 4; l > level; l--) {
        u64 *e = &table[va >> (3 + 9 * l) & 511];
        if (!(*e & P_P))
            *e = (word)new_page() | P_P | P_W | P_U;
        table = (u64 *)(*e & P_ADDR);
    }
    return &table[va >> (3 + 9 * level) & 511];
}

u64 *map_page(u64 va, u64 pa, u64 flags, int level)
{
    u64 *e = entry_of(va, level);
    *e = pa | flags | (level > 1 ? P_PS : 0);
    return e;
}

void reset_pages(void)
{
    pool_used = 0;
    for (unsigned i = 1; i < 512; i++) /* slot 0 is in use */
        pml4[i] = 0;
    for (unsigned i = 0; i < 2048; i++)
        base_pd[i] = (u64)i << 21 | P_P | P_W | P_U | P_A | P_D | P_PS;
    for (unsigned i = 0; i < 4; i++)
        base_pdpt[i] = (word)(base_pd + 512 * i) | P_P | P_W | P_U | P_A;
    pml4[0] = (word)base_pdpt | P_P | P_W | P_U | P_A;
}
#else
void reset_pages(void) { pool_used = 0; }
#endif
