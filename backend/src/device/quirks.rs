//! Deviations of particular frontends from the specification, corrected before the vhost crates see
//! them.
//!
//! | frontend | what it does | what is done about it |
//! | --- | --- | --- |
//! | User Mode Linux (`arch/um/drivers/virtio_uml.c`) | SET_MEM_TABLE always carries two region slots, also when it counts only one | [`trim_memory_table`] |
//! | User Mode Linux | the call descriptor is a socket, which may be full | a full one counts as signalled (`notifier`) |
//! | User Mode Linux | takes the closing of the backend's request channel for the end of the daemon | the channel is kept as long as the device (`backend`) |
//! | User Mode Linux | reads the configuration space from the start, one byte more each time | any size is answered (`config_space`) |
//! | User Mode Linux | resets a device by disabling its rings, without any message for it | disabling a ring drains it (`vring`) |
//! | QEMU 7.1 and later | warns of a daemon that offers CONFIG, some builds up to 8.0 crash | not offered to it ([`restrict_offer`]) |
//! | QEMU | does not repeat regions of memory on a new connection if it has CONFIGURE_MEM_SLOTS | not offered to it ([`restrict_offer`]) |
//! | QEMU with `reconnect=` | begins a new connection where the last one ended, without a handshake | the handshake is assumed (`reconnect`) |

use gangplank_vhost_user::message::{
    FrontendReq, MemoryRegion, MemoryTableHead, Message, ProtocolFeatures, payload,
};

/// Bytes of `num_regions` and its padding.
const TABLE_HEAD_LEN: usize = size_of::<MemoryTableHead>();

/// Bytes of a region slot.
const REGION_LEN: usize = size_of::<MemoryRegion>();

/// Cuts off region slots of a SET_MEM_TABLE message that exceed its own count.
pub(super) fn trim_memory_table(message: &mut Message) {
    if message.frontend_request() != Some(FrontendReq::SET_MEM_TABLE) {
        return;
    }
    let Some((head, slots)) = message.payload.split_at_checked(TABLE_HEAD_LEN) else {
        return;
    };
    let head: MemoryTableHead = payload::decode(head).unwrap_or_default();
    let counted = usize::try_from(head.num_regions).unwrap_or(usize::MAX);
    let Some(used) = counted.checked_mul(REGION_LEN) else {
        return;
    };
    if slots.len() % REGION_LEN == 0 && used < slots.len() {
        message.payload.truncate(TABLE_HEAD_LEN + used);
    }
}

/// Removes from vhost-user-backend's reply to GET_PROTOCOL_FEATURES what QEMU must not be offered.
///
/// QEMU is the frontend that asks before it has sent SET_OWNER (`vhost_dev_init` in its
/// `hw/virtio/vhost.c`). User Mode Linux and the frontends on rust-vmm's crates, which need CONFIG,
/// send SET_OWNER first. QEMU gets CONFIGURE_MEM_SLOTS only with `keeps_slots`.
pub(super) fn restrict_offer(reply: &mut Message, is_owned: bool, keeps_slots: bool) {
    if is_owned || reply.frontend_request() != Some(FrontendReq::GET_PROTOCOL_FEATURES) {
        return;
    }
    let mut hidden = ProtocolFeatures::CONFIG;
    hidden.set(ProtocolFeatures::CONFIGURE_MEM_SLOTS, !keeps_slots);
    if let Some(offered) = reply.u64() {
        reply.payload = payload::from_u64(offered & !hidden.bits());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_frontend_that_has_not_sent_set_owner_is_offered_less() {
        let (config, slots) = (1 << 9, 1 << 15);
        for (is_owned, keeps_slots, expected) in [
            (true, false, u64::MAX),
            (false, true, !config),
            (false, false, !(config | slots)),
        ] {
            let all = payload::from_u64(u64::MAX);
            let mut reply = Message::new(FrontendReq::GET_PROTOCOL_FEATURES, all.clone());
            restrict_offer(&mut reply, is_owned, keeps_slots);
            assert_eq!(reply.u64(), Some(expected));
            let mut other = Message::new(FrontendReq::GET_FEATURES, all);
            restrict_offer(&mut other, is_owned, keeps_slots);
            assert_eq!(other.u64(), Some(u64::MAX));
        }
    }

    fn memory_table(count: u32, slots: usize) -> Message {
        let mut payload = count.to_le_bytes().to_vec();
        payload.resize(TABLE_HEAD_LEN + slots * REGION_LEN, 0);
        Message::new(FrontendReq::SET_MEM_TABLE, payload)
    }

    #[test]
    fn the_unused_slot_of_user_mode_linux_is_cut_off() {
        let mut message = memory_table(1, 2);
        trim_memory_table(&mut message);
        assert_eq!(message.to_bytes(), memory_table(1, 1).to_bytes());
    }

    #[test]
    fn correct_tables_and_unrepairable_ones_stay_as_they_are() {
        for (count, slots) in [(1, 1), (2, 2), (8, 8), (3, 2), (u32::MAX, 2)] {
            let mut message = memory_table(count, slots);
            trim_memory_table(&mut message);
            assert_eq!(message.to_bytes(), memory_table(count, slots).to_bytes());
        }
        let mut short = Message::new(FrontendReq::SET_MEM_TABLE, vec![1, 0]);
        trim_memory_table(&mut short);
        assert_eq!(short.payload.len(), 2);
    }

    #[test]
    fn other_messages_stay_as_they_are() {
        let payload = memory_table(1, 2).payload;
        let mut message = Message::new(FrontendReq::SET_LOG_BASE, payload.clone());
        trim_memory_table(&mut message);
        assert_eq!(message.payload, payload);
    }
}
