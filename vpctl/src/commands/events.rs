//! `events`: what happened, and with `--follow` what happens, over changes of the leader.

use std::time::Duration;

use crate::arguments::Format;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::terminal::{Screen, Tone};
use crate::view::model::Event;
use crate::view::units::{self, moment};
use crate::view::{self, json_line};

/// Before a stream that broke is opened again.
const AGAIN: Duration = Duration::from_millis(500);
/// Characters of the date in a moment.
const DATE: usize = 10;

/// Prints events after a revision. Following ends with Ctrl-C.
pub async fn events(cluster: &Cluster, screen: &Screen, format: Format, follow: bool, after: u64) -> Result<u8, Failure> {
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    let mut seen = Seen { revision: after, count_at_revision: 0 };
    let mut silent = true;
    loop {
        let one = tokio::select! {
            _ = &mut stop => return Ok(0),
            one = stream_once(cluster, screen, format, follow, &mut seen) => one,
        };
        match one {
            Ok(()) if !follow => return Ok(0),
            Err(failure) if !follow || silent && seen.revision == after => return Err(failure),
            Ok(()) => {}
            Err(failure) => screen.complain(&failure),
        }
        silent = false;
        tokio::select! {
            _ = &mut stop => return Ok(0),
            () = tokio::time::sleep(AGAIN) => {} // the stream broke; a new leader needs a moment
        }
    }
}

/// Where a broken stream goes on: several events may have one revision, so that one is asked for again and skipped over.
struct Seen {
    revision: u64,
    count_at_revision: usize,
}

async fn stream_once(cluster: &Cluster, screen: &Screen, format: Format, follow: bool, seen: &mut Seen) -> Result<(), Failure> {
    let after = if seen.count_at_revision > 0 { seen.revision.saturating_sub(1) } else { seen.revision };
    let mut skip = seen.count_at_revision;
    let again = seen.revision;
    let mut stream = cluster.events(after, follow).await?;
    if !follow && matches!(format, Format::Yaml) {
        let mut all: Vec<Event> = Vec::new();
        while let Some(event) = next(&mut stream).await? {
            all.push(event);
        }
        return view::show(screen, format, &all, |_| String::new());
    }
    while let Some(event) = next(&mut stream).await? {
        if event.revision == again && skip > 0 {
            skip -= 1;
            continue;
        }
        seen.count_at_revision = if event.revision == seen.revision { seen.count_at_revision + 1 } else { 1 };
        seen.revision = event.revision;
        match format {
            Format::Table | Format::Wide => screen.line(&line(&event, screen, 0)),
            Format::Json | Format::Yaml => screen.data(&json_line(&event)?),
        }
    }
    Ok(())
}

async fn next(stream: &mut tonic::Streaming<vp_proto::v1::Event>) -> Result<Option<Event>, Failure> {
    let next = stream.message().await.map_err(|s| Failure::Refused(format!("the stream of events broke: {}", s.message())))?;
    Ok(next.map(Event::from))
}

/// One event for a person, moved to the right by `indent` columns. On a terminal an event of this day has no date, and what
/// does not fit goes on below.
pub fn line(event: &Event, screen: &Screen, indent: usize) -> String {
    let moment = moment(event.unix_ms);
    let brief = screen.columns().is_some() && moment.get(..DATE) == units::moment(units::now_unix_ms()).get(..DATE);
    let time = format!("{}{} {:>6}", " ".repeat(indent), if brief { moment.get(DATE + 1..).unwrap_or_default() } else { &moment }, event.revision);
    let kind = format!("{:<16}", event.kind);
    let subject = format!("{:<20}", event.subject);
    let left = [&time, &kind, &subject].iter().map(|part| part.chars().count()).sum::<usize>() + 4;
    let (detail, after) = screen.fitted(&event.detail, left, indent + 4);
    let detail = detail.join(&format!("\n{}", " ".repeat(after)));
    format!("{}  {} {subject} {detail}", screen.paint(Tone::Dim, &time), screen.paint(tone(&event.kind), &kind)).trim_end().to_owned()
}

fn tone(kind: &str) -> Tone {
    let bad = ["lost", "refused", "fenced", "abandoned", "failed", "alarm", "brake"];
    let good = ["healthy", "joined", "returned", "founded"];
    if bad.iter().any(|w| kind.contains(w)) {
        Tone::Bad
    } else if good.iter().any(|w| kind.contains(w)) {
        Tone::Good
    } else {
        Tone::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            revision: 41,
            unix_ms: 1_795_464_904_123,
            kind: "slot granted".to_owned(),
            subject: "kafka-2".to_owned(),
            detail: "to i-1, generation 41".to_owned(),
        };
        let golden = "2026-11-23 20:15:04.123     41  slot granted     kafka-2              to i-1, generation 41";
        assert_eq!(line(&event, &Screen::plain(), 0), golden);
    }

    #[test]
    fn on_a_terminal_an_event_of_today_has_no_date_and_goes_on_below() {
        let now = units::now_unix_ms();
        let event = Event {
            revision: 41,
            unix_ms: now,
            kind: "slot granted".to_owned(),
            subject: "kafka-2".to_owned(),
            detail: "to i-1e49f19bf6fb208df, generation 41".to_owned(),
        };
        let time = moment(now).split_off(DATE + 1);
        let text = line(&event, &Screen::wide(90), 0);
        assert_eq!(text, format!("{time}     41  slot granted     kafka-2              to i-1e49f19bf6fb208df,\n{}generation 41", " ".repeat(59)));
    }
}
