//! The event stream (Server-Sent Events) of the dashboard: changes of all VMs, a few times a
//! second, whatever the size of the fleet. Each event is encoded once for all clients.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::stream::{self, Stream, StreamExt};
use tokio::sync::broadcast::{Receiver, Sender, error::RecvError};

use super::SharedApp;
use super::error::ApiError;
use super::gauges::Row;
use crate::sync::lock;

const TICK: Duration = Duration::from_millis(250);
/// Ticks between two events about the fleet.
const FLEET_EVERY: u32 = 4;
/// VMs in one event.
const PIECE: usize = 2000;
/// Ticks that a client may be behind before it is sent the whole state again.
const BEHIND_MAX: usize = 16;
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// An event: its name and its data.
type News = (&'static str, Arc<str>);

/// The feed of the event stream.
pub struct Feed {
    sender: Sender<Arc<Vec<News>>>,
    /// VMs' rows as the clients know them.
    last: Mutex<Arc<Vec<Row>>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { sender: Sender::new(BEHIND_MAX), last: Mutex::default() }
    }
}

/// Returns the changed rows as events.
fn pieces(rows: &[Row], before: &[Row]) -> Vec<News> {
    let changed: Vec<usize> =
        (0..rows.len()).filter(|&vm| before.get(vm) != Some(&rows[vm])).collect();
    let piece = |vms: &[usize]| {
        let mut text = String::from("{\"vms\":[");
        for (i, &vm) in vms.iter().enumerate() {
            let Row { state, mips, packets: (rx, tx), console } = rows[vm];
            let comma = if i == 0 { "" } else { "," };
            let (whole, tenth) = (mips / 10, mips % 10);
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}[{vm},{state},{whole}.{tenth},{rx},{tx},{console}]");
        }
        text.push_str("]}");
        ("vms", text.into())
    };
    changed.chunks(PIECE).map(piece).collect()
}

fn fleet_news(app: &SharedApp) -> Option<News> {
    serde_json::to_string(&app.body()).ok().map(|text| ("fleet", text.into()))
}

/// Feeds the event stream, for ever.
pub async fn feed(app: SharedApp) {
    let mut ticker = tokio::time::interval(TICK);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks = 0;
    loop {
        ticker.tick().await;
        if app.feed.sender.receiver_count() == 0 {
            continue;
        }
        let mut last = lock(&app.feed.last);
        let rows = app.gauges.look();
        let mut news = pieces(&rows, &last);
        ticks += 1;
        if ticks % FLEET_EVERY == 0 {
            news.extend(fleet_news(&app));
        }
        *last = rows;
        if !news.is_empty() {
            // Sending fails only when the last client has just left.
            let _ = app.feed.sender.send(Arc::new(news));
        }
    }
}

/// Returns events with the whole state, and the receiver of later events.
fn join(app: &SharedApp) -> (Vec<News>, Receiver<Arc<Vec<News>>>) {
    let mut last = lock(&app.feed.last);
    if app.feed.sender.receiver_count() == 0 {
        *last = app.gauges.look();
    }
    let mut news: Vec<News> = fleet_news(app).into_iter().collect();
    news.extend(pieces(&last, &[]));
    (news, app.feed.sender.subscribe())
}

/// `GET /api/v1/events`
pub async fn events(
    State(app): State<SharedApp>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let watchers = Arc::clone(&app.watchers).try_acquire_owned();
    let permit = watchers.map_err(|_| ApiError::TooMany("too many clients watch".to_owned()))?;
    let (first, receiver) = join(&app);
    let later =
        stream::unfold((app, receiver, permit), async |(app, mut receiver, permit)| match receiver
            .recv()
            .await
        {
            Ok(news) => Some((news, (app, receiver, permit))),
            Err(RecvError::Lagged(_)) => {
                let (news, receiver) = join(&app);
                Some((Arc::new(news), (app, receiver, permit)))
            }
            Err(RecvError::Closed) => None,
        });
    let all = stream::iter([Arc::new(first)]).chain(later);
    let events = all.flat_map(|news| {
        let event = |(name, data): &News| Ok(Event::default().event(name).data(data.as_ref()));
        stream::iter(news.iter().map(event).collect::<Vec<_>>())
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(SILENCE_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_changed_is_told_in_pieces() {
        let row = |console| Row { state: 1, mips: 123, packets: (4, 5), console };
        let before = vec![row(6); 4500];
        assert!(pieces(&before, &before).is_empty());
        assert_eq!(pieces(&before, &[]).len(), 3);
        let mut rows = before.clone();
        rows[7].console = 8;
        rows.push(row(0));
        let news = pieces(&rows, &before);
        assert_eq!(news.len(), 1);
        assert_eq!(&*news[0].1, r#"{"vms":[[7,1,12.3,4,5,8],[4500,1,12.3,4,5,0]]}"#);
    }
}
