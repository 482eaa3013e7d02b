//! The calls of `/dev/dvk`: their numbers and argument blocks, for 32-bit machines, the only ones
//! that DVK supports.
//!
//! A call's number contains 4 as the size of its argument, whatever the real size is. Addresses in
//! blocks are the caller's.

use super::wire::wire_struct;

/// The ioctl type of all calls.
pub(crate) const TYPE: u32 = 0xe3;
/// The size in every number, that of an `int`.
const SIZE: u32 = 4;
const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// Major number of the device.
pub const MAJOR: u32 = 33;

/// One call of the device, identified by its ioctl number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Call(u32);

impl Call {
    const fn new(direction: u32, number: u32) -> Self {
        let size = if direction == NONE { 0 } else { SIZE };
        Self(direction << 30 | size << 16 | TYPE << 8 | number)
    }

    /// The ioctl number.
    pub const fn code(self) -> u32 {
        self.0
    }
}

/// Declares the calls.
macro_rules! calls {
    ($( $(#[$meta:meta])* $name:ident = $direction:ident $number:literal, )*) => {
        impl Call {
            $( $(#[$meta])* pub const $name: Self = Self::new($direction, $number); )*

            /// The spelling in DVK's headers without `DVK_`. Returns `None` for an unknown number.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $( Self::$name => Some(stringify!($name)), )*
                    _ => None,
                }
            }
        }

        #[cfg(test)]
        const CALLS: &[Call] = &[ $( Call::$name, )* ];
    };
}

calls! {
    /// Starts a container.
    DCINIT = WRITE 1,
    /// Sends: [`Ipc`].
    SEND = WRITE 2,
    /// Receives: [`Ipc`].
    RECEIVE = WRITE 3,
    /// Notifies: [`Notify`].
    NOTIFY = WRITE 4,
    /// Sends a request and waits for the answer: [`Ipc`].
    SENDREC = WRITE 5,
    /// Receives anything but notifications.
    RCVRQST = WRITE 6,
    /// Answers: [`Ipc`].
    REPLY = WRITE 7,
    /// Ends a container.
    DCEND = WRITE 8,
    /// Binds: [`Bind`].
    BIND = WRITE 9,
    /// Unbinds: [`Unbind`].
    UNBIND = WRITE 10,
    /// Reads privileges.
    GETPRIV = READ 11,
    /// Sets privileges.
    SETPRIV = WRITE 12,
    /// Copies: [`super::CopyBlock`].
    VCOPY = WRITE 13,
    /// Describes a container: [`GetDcInfo`].
    GETDCINFO = READ 14,
    /// Describes a process: [`GetProcInfo`].
    GETPROCINFO = READ 15,
    /// Does nothing.
    RELAY = WRITE 16,
    /// Makes a pair of proxies.
    PROXYBIND = WRITE 17,
    /// Ends a pair of proxies.
    PROXYUNBIND = WRITE 18,
    /// Describes a node.
    GETNODEINFO = READ 19,
    /// Delivers a command of another node.
    PUT2LCL = WRITE 20,
    /// Fetches a command for another node.
    GET2RMT = READ 21,
    /// Adds a node to a container.
    ADDNODE = WRITE 22,
    /// Removes a node from a container.
    DELNODE = WRITE 23,
    /// Initialises the DVS.
    DVSINIT = WRITE 24,
    /// Ends the DVS.
    DVSEND = NONE 25,
    /// Finds the endpoint of a process.
    GETEP = READ 26,
    /// Describes the DVS: [`DvsUsr`].
    GETDVSINFO = READ 27,
    /// Reports that a proxy is connected or disconnected.
    PROXYCONN = WRITE 28,
    /// Waits for a bind.
    WAIT4BIND = WRITE 29,
    /// Moves a process.
    MIGRATE = WRITE 30,
    /// Brings a node up.
    NODEUP = WRITE 31,
    /// Takes a node down.
    NODEDOWN = WRITE 32,
    /// Describes a pair of proxies.
    GETPROXYINFO = READ 33,
    /// Wakes a receiving process.
    WAKEUPEP = WRITE 34,
}

wire_struct! {
    /// Argument of [`Call::SEND`], [`Call::RECEIVE`], [`Call::SENDREC`], [`Call::REPLY`].
    pub Ipc = "parm_ipc_t", 12 bytes from 0 {
        /// The partner.
        ep: i32 => 0,
        /// Address of the message.
        message: u32 => 4,
        /// Milliseconds. Negative: no limit. 0: no waiting.
        timeout: i32 => 8,
    }
}

wire_struct! {
    /// Argument of [`Call::NOTIFY`].
    pub Notify = "parm_notify_t", 12 bytes from 0 {
        /// The source.
        src: i32 => 0,
        /// The destination.
        dst: i32 => 4,
        /// Update bit, or -1.
        value: i32 => 8,
    }
}

wire_struct! {
    /// Argument of [`Call::BIND`].
    pub Bind = "parm_bind_t", 20 bytes from 0 {
        /// Kind of binding.
        cmd: i32 => 0,
        /// Container.
        dcid: i32 => 4,
        /// Process, -1 for the caller. For a remote process the address of its name.
        pid: i32 => 8,
        /// Endpoint.
        ep: i32 => 12,
        /// Node of a remote process, else -1.
        nodeid: i32 => 16,
    }
}

/// [`Bind::cmd`]: the caller.
pub const SELF_BIND: i32 = 0;

wire_struct! {
    /// Argument of [`Call::UNBIND`].
    pub Unbind = "parm_unbind_t", 12 bytes from 0 {
        /// Container.
        dcid: i32 => 0,
        /// Endpoint.
        ep: i32 => 4,
        /// Milliseconds.
        timeout: i32 => 8,
    }
}

wire_struct! {
    /// Argument of [`Call::GETDCINFO`].
    pub GetDcInfo = "parm_getdcinfo_t", 8 bytes from 0 {
        /// Container, -1 for the caller's.
        dcid: i32 => 0,
        /// Address of a [`DcUsr`] and [`CPU_MASK`] bytes.
        info: u32 => 4,
    }
}

wire_struct! {
    /// Argument of [`Call::GETPROCINFO`].
    pub GetProcInfo = "parm_getprocinfo_t", 12 bytes from 0 {
        /// Container, -1 for the caller's.
        dcid: i32 => 0,
        /// Slot.
        p_nr: i32 => 4,
        /// Address of a [`ProcUsr`] and [`CPU_MASK`] bytes.
        info: u32 => 8,
    }
}

/// Bytes of the CPU mask that a kernel may write behind [`DcUsr`] and [`ProcUsr`], without meaning
/// here.
pub const CPU_MASK: usize = 128;

wire_struct! {
    /// A DVS.
    pub DvsUsr = "dvs_usr_t", 60 bytes from 0 {
        /// Name.
        name: [u8; 16] => 0,
        /// Containers.
        nr_dcs: i32 => 16,
        /// Nodes.
        nr_nodes: i32 => 20,
        /// Slots of a container from zero on.
        nr_procs: i32 => 24,
        /// Slots of a container below zero.
        nr_tasks: i32 => 28,
        /// Slots of system processes.
        nr_sysprocs: i32 => 32,
        /// Bytes of one piece of a copy.
        max_copybuf: i32 => 36,
        /// Bytes of one copy.
        max_copylen: i32 => 40,
        /// What the kernel logs.
        dbglvl: u32 => 44,
        /// 202202 in later builds of the current generation.
        version: i32 => 48,
        /// Build options.
        flags: u32 => 52,
        /// Bytes of a process's descriptor.
        size_proc: i32 => 56,
    }
}

wire_struct! {
    /// A container.
    pub DcUsr = "DC_usr_t", 56 bytes from 0 {
        /// Number.
        dcid: i32 => 0,
        /// 0 running, 2 free.
        flags: i32 => 4,
        /// Slots from zero on.
        nr_procs: i32 => 8,
        /// Slots below zero.
        nr_tasks: i32 => 12,
        /// Slots of system processes.
        nr_sysprocs: i32 => 16,
        /// Nodes it may have.
        nr_nodes: i32 => 20,
        /// Nodes it has, a bit each.
        nodes: u32 => 24,
        /// Process that is told of unbinds.
        warn2proc: i32 => 28,
        /// The message for it.
        warnmsg: i32 => 32,
        /// Process that holds its namespace.
        pid: i32 => 36,
        /// Name.
        name: [u8; 16] => 40,
    }
}

wire_struct! {
    /// A process of a container.
    pub ProcUsr = "proc_usr_t", 88 bytes from 0 {
        /// Slot.
        nr: i32 => 0,
        /// Endpoint.
        endpoint: i32 => 4,
        /// Container.
        dcid: i32 => 8,
        /// State: 0 running, [`SLOT_FREE`] unused.
        rts_flags: u32 => 12,
        /// Process on this machine.
        lpid: i32 => 16,
        /// Process in the container's namespace.
        vpid: i32 => 20,
        /// Node, -1 none.
        nodeid: i32 => 24,
        /// Nodes that know it.
        nodemap: u32 => 28,
        /// Further flags.
        misc_flags: u32 => 32,
        /// Endpoint that it receives from.
        getfrom: i32 => 36,
        /// Endpoint that it sends to.
        sendto: i32 => 40,
        /// Endpoint whose migration it waits for.
        waitmigr: i32 => 44,
        /// Endpoint whose unbind it waits for.
        waitunbind: i32 => 48,
        /// Pair of proxies that serves it.
        proxy: i32 => 52,
        /// Messages sent here.
        lclsent: i32 => 56,
        /// Messages sent elsewhere.
        rmtsent: i32 => 60,
        /// Copies done here.
        lclcopy: i32 => 64,
        /// Copies done elsewhere.
        rmtcopy: i32 => 68,
        /// Name.
        name: [u8; 16] => 72,
    }
}

/// [`ProcUsr::rts_flags`] of an unused slot.
pub const SLOT_FREE: u32 = 1;
/// [`ProcUsr::rts_flags`] of a process that waits for a message.
pub const RECEIVING: u32 = 8;
/// [`ProcUsr::rts_flags`] of a process with a copy in progress.
pub const ONCOPY: u32 = 0x400;
/// [`ProcUsr::rts_flags`] of a process on another node.
pub const REMOTE: u32 = 0x1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_devices() {
        for (call, code) in [
            (Call::RECEIVE, 0x4004_e303),
            (Call::SENDREC, 0x4004_e305),
            (Call::BIND, 0x4004_e309),
            (Call::GETPRIV, 0x8004_e30b),
            (Call::VCOPY, 0x4004_e30d),
            (Call::GETPROCINFO, 0x8004_e30f),
            (Call::GET2RMT, 0x8004_e315),
            (Call::DVSEND, 0x0000_e319),
            (Call::GETDVSINFO, 0x8004_e31b),
            (Call::WAKEUPEP, 0x4004_e322),
        ] {
            assert_eq!(call.code(), code, "{:?}", call.name());
        }
    }

    #[test]
    fn calls_are_numbered_from_one_without_a_gap() {
        let numbers = CALLS.iter().map(|call| call.code() & 0xff);
        assert!(numbers.eq(1..=34));
    }
}
