//! The table: every row in one array, and an index by iced code.

use crate::Form;
use crate::groups::GROUPS;
use iced_x86::Code;

const COUNT: usize = {
    let mut n = 0;
    let mut g = 0;
    while g < GROUPS.len() {
        n += GROUPS[g].len();
        g += 1;
    }
    n
};

static FORMS: [Form; COUNT] = {
    let mut all = [GROUPS[0][0]; COUNT];
    let mut n = 0;
    let mut g = 0;
    while g < GROUPS.len() {
        let mut i = 0;
        while i < GROUPS[g].len() {
            all[n] = GROUPS[g][i];
            n += 1;
            i += 1;
        }
        g += 1;
    }
    all
};

/// One more than the highest code that has a row.
const CODES: usize = {
    let mut max = 0;
    let mut i = 0;
    while i < COUNT {
        let code = FORMS[i].code as usize;
        if code > max {
            max = code;
        }
        i += 1;
    }
    max + 1
};

/// Index into [`FORMS`] plus one; zero: no row.
static INDEX: [u16; CODES] = {
    let mut index = [0; CODES];
    let mut i = 0;
    while i < COUNT {
        let code = FORMS[i].code as usize;
        assert!(index[code] == 0, "two rows for one code");
        index[code] = i as u16 + 1;
        i += 1;
    }
    index
};

/// The row of an instruction form. `None`: the form does not exist for guests (#UD).
#[inline]
#[must_use]
pub fn lookup(code: Code) -> Option<&'static Form> {
    let i = *INDEX.get(code as usize)?;
    FORMS.get((i as usize).wrapping_sub(1))
}

/// Every row, grouped by file.
pub fn forms() -> impl ExactSizeIterator<Item = &'static Form> {
    FORMS.iter()
}
