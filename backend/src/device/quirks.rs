//! Deviations of particular frontends from the specification, corrected before the vhost crates see
//! them.
//!
//! | frontend | what it does | what is done about it |
//! | --- | --- | --- |
//! | User Mode Linux (`arch/um/drivers/virtio_uml.c`) | SET_MEM_TABLE always carries two region slots, also when it counts only one | [`trim_memory_table`] |
//! | User Mode Linux | the call descriptor is a pipe, which may be full | a ring's descriptors never block, and a full one counts as signalled (`vring`) |
//! | User Mode Linux | takes the closing of the backend's request channel for the end of the daemon | the channel is kept as long as the device (`backend`) |
//! | User Mode Linux | reads the configuration space from the start, one byte more each time | any size is answered (`config_space`) |
//! | User Mode Linux | resets a device by disabling its rings, without any message for it | disabling a ring drains it (`vring`) |

use super::connection::message::{HEADER_LEN, Message};

/// Request number of `VHOST_USER_SET_MEM_TABLE`.
const SET_MEM_TABLE: u32 = 5;

/// Bytes of `num_regions` and its padding.
const TABLE_HEAD_LEN: usize = 8;

/// Bytes of a region: guest address, size, user address and file offset, 8 bytes each.
const REGION_LEN: usize = 32;

/// Cuts off region slots of a SET_MEM_TABLE message that exceed its own count.
pub(super) fn trim_memory_table(message: &mut Message) {
    if message.request() != SET_MEM_TABLE {
        return;
    }
    let payload = &message.bytes[HEADER_LEN..];
    let Some((count, slots)) = payload
        .split_first_chunk::<4>()
        .zip(payload.get(TABLE_HEAD_LEN..))
    else {
        return;
    };
    let counted = usize::try_from(u32::from_le_bytes(*count.0)).unwrap_or(usize::MAX);
    let Some(used) = counted.checked_mul(REGION_LEN) else {
        return;
    };
    if slots.len() % REGION_LEN == 0 && used < slots.len() {
        message.truncate_payload(TABLE_HEAD_LEN + used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_table(count: u32, slots: usize) -> Message {
        let mut payload = count.to_le_bytes().to_vec();
        payload.resize(TABLE_HEAD_LEN + slots * REGION_LEN, 0);
        Message::new(SET_MEM_TABLE, &payload)
    }

    #[test]
    fn the_unused_slot_of_user_mode_linux_is_cut_off() {
        let mut message = memory_table(1, 2);
        trim_memory_table(&mut message);
        assert_eq!(message.bytes, memory_table(1, 1).bytes);
    }

    #[test]
    fn correct_tables_and_unrepairable_ones_stay_as_they_are() {
        for (count, slots) in [(1, 1), (2, 2), (8, 8), (3, 2), (u32::MAX, 2)] {
            let mut message = memory_table(count, slots);
            trim_memory_table(&mut message);
            assert_eq!(message.bytes, memory_table(count, slots).bytes);
        }
        let mut short = Message::new(SET_MEM_TABLE, &[1, 0]);
        trim_memory_table(&mut short);
        assert_eq!(short.bytes.len(), HEADER_LEN + 2);
    }

    #[test]
    fn other_messages_stay_as_they_are() {
        let payload = memory_table(1, 2).bytes.split_off(HEADER_LEN);
        let mut message = Message::new(SET_MEM_TABLE + 1, &payload);
        trim_memory_table(&mut message);
        assert_eq!(message.bytes.len(), HEADER_LEN + payload.len());
    }
}
