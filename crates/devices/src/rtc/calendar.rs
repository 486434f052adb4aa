//! The Gregorian calendar, proleptic, UTC.

/// A moment, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub year: i64,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
    /// 1 (Sunday) to 7.
    pub weekday: u32,
}

/// Days from 1970-01-01 to the first of March of `year` (years that begin in March end with the
/// leap day, which makes them easy to count).
fn march(year: i64) -> i64 {
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) - 719_468
}

/// Seconds since 1970. Fields out of range count on (month 13 is the next January).
pub(super) fn to_unix(date: &Date) -> i64 {
    let months = date.year * 12 + i64::from(date.month) - 3;
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
    let days = march(year) + (153 * month + 2) / 5 + i64::from(date.day) - 1;
    let minutes = i64::from(date.hour) * 60 + i64::from(date.minute);
    days * 86_400 + minutes * 60 + i64::from(date.second)
}

/// The date `seconds` after 1970.
pub(super) fn from_unix(seconds: i64) -> Date {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // 146097 days in 400 years; the guess is at most one year too high or low.
    let mut year = (days + 719_468) * 400 / 146_097;
    while march(year + 1) <= days {
        year += 1;
    }
    while march(year) > days {
        year -= 1;
    }
    let of_year = days - march(year);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let late = month >= 10;
    Date {
        year: if late { year + 1 } else { year },
        month: if late { month - 9 } else { month + 3 } as u32,
        day: day as u32,
        hour: (of_day / 3600) as u32,
        minute: (of_day / 60 % 60) as u32,
        second: (of_day % 60) as u32,
        // 1970-01-01 was a Thursday.
        weekday: ((days + 4).rem_euclid(7) + 1) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let fields = |t| {
            let d = from_unix(t);
            (d.year, d.month, d.day, d.weekday)
        };
        assert_eq!(fields(0), (1970, 1, 1, 5));
        assert_eq!(fields(951_782_400), (2000, 2, 29, 3));
        assert_eq!(fields(951_868_800), (2000, 3, 1, 4));
        assert_eq!(fields(4_107_542_399), (2100, 2, 28, 1));
        assert_eq!(fields(4_107_542_400), (2100, 3, 1, 2));
        assert_eq!(fields(-1), (1969, 12, 31, 4));
        assert_eq!(fields(1_767_225_599), (2025, 12, 31, 4));
    }

    #[test]
    fn there_and_back() {
        for t in (-9_000_000_000..9_000_000_000i64).step_by(7_777_777) {
            assert_eq!(to_unix(&from_unix(t)), t);
        }
    }
}
