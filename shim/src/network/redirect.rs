//! All that comes into one interface goes out by another, by the kernel's traffic control.

use std::io;

use caisson_netlink::{NLM_F_CREATE, NLM_F_EXCL, Netlink};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{
        TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
        TcActionOption, TcActionType, TcAttribute, TcFilterU32Option, TcHandle, TcHeader,
        TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
        TcU32SelectorFlags,
    },
};

/// The hook for what comes in, of a clsact queue discipline.
const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };

/// As tc(8) calls the only queue discipline at [`TcHandle::CLSACT`].
const CLSACT: TcHandle = TcHandle { major: u16::MAX, minor: 0 };

/// Redirects from one interface to the other, by a filter of the priority `mark`: with no
/// other beside it a priority says nothing else. An interface that has a queue discipline
/// for what comes in is an error (`AlreadyExists`).
pub(super) fn add(netlink: &Netlink, from: u32, to: u32, mark: u16) -> io::Result<()> {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    netlink.request(RouteNetlinkMessage::NewQueueDiscipline(clsact(from)), flags)?;
    netlink.request(RouteNetlinkMessage::NewTrafficFilter(filter(from, to, mark)), flags)
}

/// Takes the redirect from an interface away if it has this mark, or if it is only half made.
pub(super) fn remove(netlink: &Netlink, from: u32, mark: u16) -> io::Result<()> {
    let question = TcMessage::from_parts(header(from, TcHandle::UNSPEC, INGRESS), Vec::new());
    let told = netlink.dump(RouteNetlinkMessage::GetTrafficFilter(question));
    let told = match told {
        // The interface is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        told => told?,
    };
    let mut marks = told.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter.header.info >> 16),
        _ => None,
    });
    if marks.any(|found| found != u32::from(mark)) {
        return Ok(());
    }
    match netlink.request(RouteNetlinkMessage::DelQueueDiscipline(clsact(from)), 0) {
        // The interface, or the queue discipline, is gone.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)) =>
        {
            Ok(())
        }
        removed => removed,
    }
}

fn header(interface: u32, handle: TcHandle, parent: TcHandle) -> TcHeader {
    let index = interface.cast_signed();
    TcHeader { index, handle, parent, ..TcHeader::default() }
}

fn clsact(interface: u32) -> TcMessage {
    let kind = TcAttribute::Kind("clsact".to_owned());
    TcMessage::from_parts(header(interface, CLSACT, TcHandle::CLSACT), vec![kind])
}

fn filter(from: u32, to: u32, mark: u16) -> TcMessage {
    // As tcm_info wants it.
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    let mut header = header(from, TcHandle::UNSPEC, INGRESS);
    header.info = u32::from(mark) << 16 | u32::from(every_protocol);
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let parameters = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![parameters]),
    ];
    // One key, which no bit of a frame can fail.
    let mut every_frame = TcU32Selector::default();
    every_frame.flags = TcU32SelectorFlags::Terminal;
    every_frame.nkeys = 1;
    every_frame.keys = vec![TcU32Key::default()];
    let options =
        [TcFilterU32Option::Selector(every_frame), TcFilterU32Option::Action(vec![action])];
    let options = options.map(TcOption::U32).to_vec();
    let kind = TcAttribute::Kind("u32".to_owned());
    TcMessage::from_parts(header, vec![kind, TcAttribute::Options(options)])
}
