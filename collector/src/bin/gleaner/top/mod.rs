//! `gleaner top`: the fleet, live.
//!
//! `rows` turns a fleet into sorted rows (pure), `screen` draws them. Here are the terminal, the keys and
//! the connection, which is made anew for as long as somebody looks.

mod rows;
mod screen;

use std::io::Write;
use std::time::Duration;

use comfy_table::{Table, presets};
use proto::capacity::v1::capacity_client::CapacityClient;
use proto::capacity::v1::{Fleet, GetFleetRequest};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::Channel;

use crate::connect::{ClientError, Collector};
use crate::{json, words};
use rows::{Order, Row};
use screen::Screen;

/// Between two looks for a key.
const KEYS: Duration = Duration::from_millis(50);
/// A collector that does not answer within it counts as lost.
const ANSWER: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Once, as a plain table, instead of live.
    #[arg(long)]
    once: bool,
    /// One JSON object per refresh.
    #[arg(long)]
    json: bool,
    /// Seconds between two refreshes.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// The connection, made when it is needed.
struct Source<'a> {
    collector: &'a Collector,
    client: Option<CapacityClient<Channel>>,
}

pub(crate) async fn run(
    arguments: &Arguments,
    collector: &Collector,
    is_terminal: bool,
    out: &mut impl Write,
) -> Result<(), ClientError> {
    let mut source = Source { collector, client: None };
    let period = Duration::from_secs(arguments.interval);
    if arguments.json {
        return print_objects(&mut source, arguments.once, period, out).await;
    }
    let first = source.fleet().await?;
    if arguments.once {
        return Ok(write!(out, "{}", table(&first))?);
    }
    if !is_terminal {
        return Err(ClientError::NoTerminal);
    }
    let mut terminal = ratatui::try_init()?;
    let result = watch(&mut terminal, &mut source, first, period).await;
    ratatui::restore();
    result
}

async fn print_objects(
    source: &mut Source<'_>,
    once: bool,
    period: Duration,
    out: &mut impl Write,
) -> Result<(), ClientError> {
    loop {
        writeln!(out, "{}", json::fleet(&source.fleet().await?))?;
        out.flush()?;
        if once {
            return Ok(());
        }
        sleep(period).await;
    }
}

async fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    source: &mut Source<'_>,
    first: Fleet,
    period: Duration,
) -> Result<(), ClientError> {
    let mut screen = Screen::new(&source.collector.address, first);
    let mut keys = interval(KEYS);
    keys.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        let next = async {
            sleep(period).await;
            source.fleet().await
        };
        tokio::pin!(next);
        loop {
            tokio::select! {
                fleet = &mut next => {
                    screen.take(fleet.map_err(|it| it.to_string()));
                    break;
                }
                _ = keys.tick() => match read_keys(&mut screen)? {
                    Pressed::Nothing => {}
                    Pressed::Something => { terminal.draw(|frame| screen.draw(frame))?; }
                    Pressed::Quit => return Ok(()),
                },
            }
        }
    }
}

enum Pressed {
    Nothing,
    Something,
    Quit,
}

/// Takes what was typed, without waiting.
fn read_keys(screen: &mut Screen) -> Result<Pressed, ClientError> {
    let mut pressed = Pressed::Nothing;
    while event::poll(Duration::ZERO)? {
        match event::read()? {
            Event::Key(key) if key.kind != KeyEventKind::Release => {
                if is_quit(key) {
                    return Ok(Pressed::Quit);
                }
                screen.press(key.code);
                pressed = Pressed::Something;
            }
            Event::Resize(..) => pressed = Pressed::Something,
            _ => {}
        }
    }
    Ok(pressed)
}

fn is_quit(key: KeyEvent) -> bool {
    let interrupted =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

fn table(fleet: &Fleet) -> String {
    let rows = rows::rows(fleet, Order::Node, false);
    if rows.is_empty() {
        return format!("{}\n", rows::nothing(fleet));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(rows::HEADER);
    table.add_rows(rows.iter().map(Row::cells));
    format!("{}\n\n{table}\n", rows::summary(fleet))
}

// === impl Source ===

impl Source<'_> {
    /// A failure forgets the connection, so that the next call makes another.
    async fn fleet(&mut self) -> Result<Fleet, ClientError> {
        let client = match &mut self.client {
            Some(client) => client,
            empty => empty.insert(self.collector.capacity().await?),
        };
        let answer = timeout(ANSWER, client.get_fleet(GetFleetRequest {})).await;
        let result = match answer {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => self.collector.failed(&status),
            Err(_elapsed) => ClientError::Unreachable {
                address: self.collector.address.clone(),
                cause: format!("no answer within {}", words::plural(5, "second")),
            },
        };
        self.client = None;
        Err(result)
    }
}
