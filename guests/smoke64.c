#include "guest.h"
TEST(ud) { struct regs r = kernel_regs(); RUN(&r, "ud2"); TRAPPED(&r, V_UD, 0, 0); }
TEST(user_hlt) { struct regs r = user_regs(); RUN(&r, "nop; hlt"); TRAPPED(&r, V_GP, 0, 1); EXPECT_EQ(r.cs, UCS64); }
