//! `gleaner idle watch`: the stream of offers, line by line, for as long as somebody reads.
//!
//! `told` folds messages into what they mean (pure), `line` writes that for people and for programs
//! (pure); here is the connection, which is made anew for ever.

mod line;
mod told;

use std::io::Write;
use std::time::Duration;

use collector::clock;
use proto::capacity::v1::{Position, WatchRequest};
use proto::names;
use proto::telemetry::v1::Class;
use tokio::time::{sleep, timeout};

use crate::connect::{ClientError, Collector};
use line::Format;
use told::{Told, Watcher};

const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// The longest that any offer holds: a stream without a word for so long has nothing to say.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object per line, heartbeats included.
    #[arg(long)]
    json: bool,
    /// Only these classes, such as `free,memory_held`. Without it, all that are ever offered.
    #[arg(long, value_name = "CLASS", value_delimiter = ',')]
    class: Vec<String>,
}

/// Ends only when the output does.
pub(crate) async fn run(
    arguments: &Arguments,
    collector: &Collector,
    out: &mut impl Write,
) -> Result<(), ClientError> {
    let classes = arguments.class.iter().map(|it| class(it)).collect::<Result<Vec<_>, _>>()?;
    let format = if arguments.json { Format::Json } else { Format::People };
    let mut watcher = Watcher::new(&collector.address);
    let mut say = |told: &[Told], position: Option<&Position>| -> Result<(), ClientError> {
        let lines = told.iter().filter_map(|it| format.line(it, position, clock::real_ns()));
        for line in lines {
            writeln!(out, "{line}")?;
        }
        Ok(out.flush()?)
    };
    let mut wait = RETRY_FIRST;
    loop {
        let before = watcher.messages();
        let end = follow(collector, &classes, &mut watcher, &mut say).await?;
        say(&watcher.lost(&end), watcher.position())?;
        wait = if watcher.messages() > before { RETRY_FIRST } else { (wait * 2).min(RETRY_MOST) };
        sleep(wait.mul_f64(fastrand::f64())).await;
    }
}

/// One connection, until it ends: why it did.
async fn follow(
    collector: &Collector,
    classes: &[Class],
    watcher: &mut Watcher,
    say: &mut impl FnMut(&[Told], Option<&Position>) -> Result<(), ClientError>,
) -> Result<String, ClientError> {
    let mut client = match collector.capacity().await {
        Ok(client) => client,
        Err(error) => return Ok(error.cause()),
    };
    let classes = classes.iter().map(|it| i32::from(*it)).collect();
    let request = WatchRequest { resume: watcher.position().cloned(), classes };
    let mut stream = match client.watch(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(collector.failed(&status).cause()),
    };
    watcher.connected();
    loop {
        match timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(message))) => {
                let told = watcher.message(message);
                say(&told, watcher.position())?;
            }
            Ok(Ok(None)) => return Ok("the collector ended the stream".to_owned()),
            Ok(Err(status)) => return Ok(collector.failed(&status).cause()),
            Err(_elapsed) => return Ok(format!("no word for {} s", SILENCE.as_secs())),
        }
    }
}

fn class(name: &str) -> Result<Class, ClientError> {
    let offered = [
        Class::Free,
        Class::HeldNoProcess,
        Class::HeldNoContext,
        Class::MemoryHeld,
        Class::Stalled,
    ];
    offered.into_iter().find(|it| names::class_name(*it) == name).ok_or_else(|| {
        ClientError::Option {
            option: "class",
            got: name.to_owned(),
            expected: "free, held_no_process, held_no_context, memory_held or stalled",
        }
    })
}

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn only_classes_that_are_offered_can_be_asked_for() {
        class("memory_held").unwrap();
        let error = class("active").unwrap_err().to_string();
        assert!(error.starts_with("--class is active, expected free, held_no_process"), "{error}");
    }
}
