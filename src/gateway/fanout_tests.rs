//! Fanouts over connections of the machine: who gets what, and in which order, when some do not read.

use std::{future::poll_fn, pin::pin};

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};

use super::*;
use crate::{
    client::{
        proto::{Cause, Mode, StateUpdate},
        shared::Shared,
    },
    gateway::{
        TalkLimits,
        latest::{Ended, Frames},
        line::text_frame,
        talk::Allowance,
    },
    http::UpgradedStream,
};

/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than the kernels of both sides hold.
const LARGE: usize = 12 << 20;

type Viewer = WebSocketStream<TcpStream>;

async fn fanout() -> Arc<Fanout> {
    let punctual = |_| async { Ok(std::future::pending()) };
    let lag = Arc::new(Shared::default()).join((), Lag::default, punctual).await.expect("open");
    Arc::new(Fanout::new(lag, Duration::from_secs(60)))
}

/// Both ends of a connection.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (near, far) = tokio::join!(listener.accept(), TcpStream::connect(listener.local_addr().expect("bound")));
    (near.expect("accepted").0, far.expect("connected"))
}

fn line_over(stream: TcpStream) -> Line {
    let allowance = Allowance::new(TalkLimits::default());
    Line::new(UpgradedStream::Tcp(stream), &Bytes::new(), 4 << 10, allowance)
}

/// A line, and the viewer at its other end.
async fn line() -> (Line, Viewer) {
    let (near, far) = connection().await;
    (line_over(near), WebSocketStream::from_raw_socket(far, Role::Client, None).await)
}

impl Fanout {
    /// A member that was sent the snapshot 0, and its viewer.
    async fn admit(self: &Arc<Self>) -> (Member, Viewer) {
        let (line, mut viewer) = line().await;
        let member = self.join(line, self.reader(Format::Json));
        member.start(frame(0, 0));
        assert_eq!(next(&mut viewer).await, Some(0));
        (member, viewer)
    }

    fn put_up(&self, cause: Cause, sequence: u64, length: usize) {
        let (mode, epoch) = (Mode::Running.into(), 1);
        let update = StateUpdate { cause: cause.into(), mode, epoch, sequence, ..StateUpdate::default() };
        self.post(|latest| latest.post(&update, Frames::same(frame(sequence, length))));
    }
}

fn frame(sequence: u64, length: usize) -> Bytes {
    text_frame(" ".repeat(length) + &sequence.to_string())
}

/// The sequence of the next message; none at the end of the line.
async fn next(viewer: &mut Viewer) -> Option<u64> {
    loop {
        let message = timeout(PATIENCE, viewer.next()).await.expect("not for ever")?.ok()?;
        if let Ok(text) = message.to_text()
            && message.is_text()
        {
            return Some(text.trim().parse().expect("a number"));
        }
    }
}

/// What the task of a socket does with its member.
async fn attend(member: &Member) -> End {
    loop {
        if let Err(end) = poll_fn(|context| member.poll(context)).await {
            return end;
        }
    }
}

#[tokio::test]
async fn who_takes_nothing_delays_nobody_and_gets_the_newest_state_later() {
    let fanout = fanout().await;
    let (slow, mut slow_viewer) = fanout.admit().await;
    fanout.put_up(Cause::Tick, 1, LARGE);
    fanout.write_all();
    // Its line is full. All others get everything, without a task of theirs.
    let (_fast, mut fast_viewer) = fanout.admit().await;
    for sequence in 2..=9 {
        fanout.put_up(Cause::Tick, sequence, 0);
        fanout.write_all();
        assert_eq!(next(&mut fast_viewer).await, Some(sequence));
    }
    // Now it reads: the frame that was begun, and then what is newest.
    let read = async { [next(&mut slow_viewer).await, next(&mut slow_viewer).await] };
    tokio::select! {
        seen = read => assert_eq!(seen, [Some(1), Some(9)]),
        end = attend(&slow) => panic!("{end:?}"),
    }
    // And it is one like the others again.
    fanout.put_up(Cause::Tick, 10, 0);
    fanout.write_all();
    assert_eq!([next(&mut slow_viewer).await, next(&mut fast_viewer).await], [Some(10), Some(10)]);
}

#[tokio::test]
async fn a_socket_that_leaves_within_a_frame_leaves_nothing() {
    let fanout = fanout().await;
    let (leaves, mut first) = fanout.admit().await;
    let (dropped, mut second) = fanout.admit().await;
    fanout.put_up(Cause::Tick, 1, LARGE);
    let mut round = Round::new(Arc::clone(&fanout));
    round.write();
    round.done().await;
    let line = leaves.leave().expect("it is there");
    assert!(!line.is_clear(), "a frame is partly written");
    drop(line);
    // Another round is under way meanwhile.
    fanout.put_up(Cause::Tick, 2, 0);
    round.write();
    drop(dropped);
    round.done().await;
    assert!(fanout.recipients().is_empty());
    assert_eq!([next(&mut first).await, next(&mut second).await], [None, None], "half a frame, and the end");
    // Their places are others' now.
    let (_member, mut third) = fanout.admit().await;
    fanout.put_up(Cause::Tick, 3, 0);
    round.write();
    round.done().await;
    assert_eq!(next(&mut third).await, Some(3));
}

#[tokio::test]
async fn no_change_is_pushed_out_before_a_round_has_come_to_everybody() {
    const CHANGES: u64 = 1_000;
    let fanout = fanout().await;
    let mut members = Vec::new();
    let mut viewers = JoinSet::new();
    for _ in 0..PART + 5 {
        let (member, mut viewer) = fanout.admit().await;
        members.push(member);
        viewers.spawn(async move {
            for sequence in 1..=CHANGES {
                assert_eq!(next(&mut viewer).await, Some(sequence));
            }
            viewer
        });
    }
    let attending = futures_util::future::select_all(members.iter().map(|member| Box::pin(attend(member))));
    let mut round = Round::new(Arc::clone(&fanout));
    let writing = async {
        let mut waits = 0;
        for sequence in 1..=CHANGES {
            while !round.has_room() {
                waits += 1;
                round.done().await;
            }
            fanout.put_up(Cause::Command, sequence, 0);
            round.write();
        }
        while !round.parts.is_empty() {
            round.done().await;
        }
        assert!(waits >= CHANGES / MAX_WAITING - 1, "{waits}");
        let mut done = Vec::new();
        while let Some(read) = viewers.join_next().await {
            done.push(read.expect("all changes in order"));
        }
    };
    tokio::select! {
        () = writing => {}
        (end, ..) = attending => panic!("{end:?}"),
    }
}

#[tokio::test]
async fn a_round_under_way_is_not_begun_again_the_next_finds_the_newest() {
    let fanout = fanout().await;
    let (_member, mut viewer) = fanout.admit().await;
    let mut round = Round::new(Arc::clone(&fanout));
    assert_eq!(round.done().now_or_never(), None, "nothing is under way");
    for sequence in 1..=100 {
        fanout.put_up(Cause::Tick, sequence, 0);
        round.write();
        assert_eq!(round.parts.len(), 1);
    }
    while !round.parts.is_empty() {
        round.done().await;
    }
    assert_eq!(next(&mut viewer).await, Some(100));
    fanout.put_up(Cause::Tick, 101, 0);
    round.write();
    round.done().await;
    assert_eq!(next(&mut viewer).await, Some(101), "and each once");
}

#[tokio::test]
async fn who_waits_is_told_of_the_end() {
    let fanout = fanout().await;
    let (member, _viewer) = fanout.admit().await;
    let mut attending = pin!(attend(&member));
    assert_eq!(attending.as_mut().now_or_never(), None);
    fanout.post(|latest| latest.end(Ended::ShuttingDown));
    fanout.write_all();
    assert_eq!(timeout(PATIENCE, attending).await, Ok(End::ShuttingDown));
}

#[tokio::test]
async fn an_end_stands_whatever_is_said_behind_it() {
    let fanout = fanout().await;
    let (near, _far) = connection().await;
    let near = near.into_std().expect("a connection");
    let mut same = near.try_clone().expect("another handle");
    let near = TcpStream::from_std(near).expect("a connection");
    near.writable().await.expect("it takes something");
    let member = fanout.join(line_over(near), fanout.reader(Format::Json));
    member.start(frame(0, 0));
    let removed = StateUpdate { epoch: 1, sequence: 1, ..StateUpdate::default() };
    fanout.post(|latest| latest.post(&removed, Frames::same(frame(1, 0))));
    fanout.write_all();
    // The line is clear, and takes nothing more.
    while std::io::Write::write(&mut same, &[0; 1 << 10]).is_ok() {}
    assert_eq!(member.ping(), Ok(()));
    assert_eq!(attend(&member).now_or_never(), Some(End::Removed));
}
