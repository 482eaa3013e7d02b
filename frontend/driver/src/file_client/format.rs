//! Attributes as text.

use gangplank_fuse::Attr;
use rustix::fs::FileType;

/// Type and permissions, as `ls -l` shows them.
pub(super) fn mode(mode: u32) -> String {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::RegularFile => '-',
        FileType::Unknown => '?',
    };
    let mut text = String::from(kind);
    // For each class: shift of its bits, the bit that replaces its x, and the letter.
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A file's type in words.
pub(super) const fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::RegularFile => "regular file",
        FileType::Unknown => "of unknown kind",
    }
}

/// Size in bytes, or a device's numbers in the kernel's 32-bit encoding (`new_encode_dev`,
/// linux/kdev_t.h).
pub(super) fn size(attr: &Attr) -> String {
    match FileType::from_raw_mode(attr.mode) {
        FileType::CharacterDevice | FileType::BlockDevice => {
            let major = (attr.rdev & 0xf_ff00) >> 8;
            let minor = (attr.rdev & 0xff) | ((attr.rdev >> 12) & 0xf_ff00);
            format!("{major}, {minor}")
        }
        _ => attr.size.to_string(),
    }
}

/// Bytes in the largest binary unit that keeps them above one, as people read them.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut divisor = 1_u64;
    while count / divisor >= 1024 && unit + 1 < UNITS.len() {
        unit += 1;
        divisor <<= 10;
    }
    if unit == 0 {
        return format!("{count} B");
    }
    // Tenths, rounded up as du(1) does: a file never shows as smaller than it is.
    let tenths = (u128::from(count) * 10).div_ceil(u128::from(divisor));
    match tenths {
        0..100 => format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]),
        _ => format!("{} {}", tenths.div_ceil(10), UNITS[unit]),
    }
}

/// Date and time of day in UTC, from seconds since 1970 as the wire has them: signed, in an
/// unsigned field.
pub(super) fn time(seconds: u64) -> String {
    let seconds = seconds.cast_signed();
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let (year, month, day) = date(days);
    let (hour, minute) = (of_day / 3600, of_day / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
}

/// Year, month and day in the Gregorian calendar, of a day counted from 1970-01-01. Years begin in
/// March here, so that a leap day is the last day of its year.
const fn date(days: i64) -> (i64, i64, i64) {
    // 0000-03-01 is 719 468 days before 1970-01-01; the calendar repeats after 146 097 days.
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let next = if month <= 2 { 1 } else { 0 };
    (year_of_era + era * 400 + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_ls_writes_them() {
        for (number, expected) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "lrwxrwxrwx"),
            (0o104_711, "-rws--x--x"),
            (0o106_644, "-rwSr-Sr--"),
            (0o041_777, "drwxrwxrwt"),
            (0o041_776, "drwxrwxrwT"),
            (0o020_600, "crw-------"),
        ] {
            assert_eq!(mode(number), expected);
        }
    }

    #[test]
    fn bytes_are_in_the_units_of_people() {
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1025, "1.1 KiB"),
            (10 << 20, "10 MiB"),
            ((10 << 20) + 1, "11 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00"),
            (951_782_340, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (951_868_800, "2000-03-01 00:00"),
            (4_107_542_400, "2100-03-01 00:00"),
            (1_795_262_400, "2026-11-21 12:00"),
            (-1_i64.cast_unsigned().cast_signed(), "1969-12-31 23:59"),
        ] {
            assert_eq!(time(seconds.cast_unsigned()), expected);
        }
        // Whatever the daemon says.
        time(u64::MAX / 2);
        time(1 << 63);
    }

    #[test]
    fn devices_show_their_numbers() {
        let attr = Attr {
            mode: 0o060_600,
            rdev: 0x0010_0802,
            size: 7,
            ..Attr::default()
        };
        assert_eq!(size(&attr), "8, 258");
    }
}
