//! Draws the rows. Colours repeat what the words say, never more.

use proto::capacity::v1::Fleet;
use proto::telemetry::v1::Class;
use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState, Wrap};

use super::rows::{self, HEADER, Order, Row};

/// What is on the screen.
#[derive(Debug)]
pub(super) struct Screen {
    address: String,
    fleet: Fleet,
    /// Why the newest refresh failed; what is shown is from before.
    failure: Option<String>,
    order: Order,
    reverse: bool,
    table: TableState,
}

// === impl Screen ===

impl Screen {
    pub(super) fn new(address: &str, fleet: Fleet) -> Self {
        Self {
            address: address.to_owned(),
            fleet,
            failure: None,
            order: Order::Node,
            reverse: false,
            table: TableState::default(),
        }
    }

    pub(super) fn take(&mut self, fleet: Result<Fleet, String>) {
        match fleet {
            Ok(fleet) => {
                self.fleet = fleet;
                self.failure = None;
            }
            Err(failure) => self.failure = Some(failure),
        }
    }

    pub(super) fn press(&mut self, key: KeyCode) {
        match key {
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Down | KeyCode::Char('j') => self.table.scroll_down_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.table.scroll_up_by(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.table.scroll_down_by(20),
            KeyCode::PageUp => self.table.scroll_up_by(20),
            KeyCode::Home | KeyCode::Char('g') => self.table.select_first(),
            KeyCode::End | KeyCode::Char('G') => self.table.select_last(),
            _ => {}
        }
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let warning = if self.failure.is_some() { 2 } else { 0 };
        let [head, lost, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(warning),
            Constraint::Min(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let title = Line::from(vec!["gleaner ".bold(), rows::summary(&self.fleet).into()]);
        frame.render_widget(title, head);
        self.draw_failure(frame, lost);
        self.draw_body(frame, body);
        frame.render_widget(self.foot(), foot);
    }

    fn draw_failure(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(failure) = &self.failure else { return };
        let text =
            format!("Not connected, what is below is old and offers no longer hold: {failure}");
        let style = Style::new().fg(Color::Black).bg(Color::Yellow);
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }).style(style), area);
    }

    fn draw_body(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let rows = rows::rows(&self.fleet, self.order, self.reverse);
        if rows.is_empty() {
            let text = Paragraph::new(rows::nothing(&self.fleet)).wrap(Wrap { trim: true });
            frame.render_widget(text, area);
            return;
        }
        let stale = self.failure.is_some();
        let widths = rows::widths(&rows, area.width);
        let header = TableRow::new(HEADER).style(Style::new().add_modifier(Modifier::DIM));
        let table = Table::new(rows.iter().map(|it| table_row(it, stale)), widths)
            .header(header)
            .column_spacing(1)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, area, &mut self.table);
    }

    fn foot(&self) -> Line<'_> {
        let reversed = if self.reverse { ", reversed" } else { "" };
        let order = format!("{}{reversed}", self.order.name());
        Line::from(vec![
            Span::raw("q").bold(),
            Span::raw(" quit  "),
            Span::raw("s").bold(),
            Span::raw(format!(" sort: {order}  ")),
            Span::raw("r").bold(),
            Span::raw(" reverse  "),
            Span::raw("↑↓").bold(),
            Span::raw(" scroll  "),
            Span::raw(&self.address).dim(),
        ])
    }
}

fn table_row(row: &Row, stale: bool) -> TableRow<'_> {
    let cells = row.cells().iter().enumerate().map(|(column, text)| {
        let cell = Cell::from(text.as_str());
        match HEADER[column] {
            "CLASS" => cell.style(Style::new().fg(colour(row.class))),
            "OFFER" if row.offered && row.live => cell.style(Style::new().fg(Color::Green).bold()),
            _ => cell,
        }
    });
    let faint = stale || !row.live;
    let style = if faint { Style::new().add_modifier(Modifier::DIM) } else { Style::new() };
    TableRow::new(cells).style(style)
}

/// From the terminal's own palette, so that light and dark both work.
fn colour(class: Class) -> Color {
    match class {
        Class::Free => Color::Green,
        Class::HeldNoProcess | Class::HeldNoContext | Class::MemoryHeld => Color::Yellow,
        Class::Stalled => Color::Magenta,
        Class::HostBound => Color::Cyan,
        Class::Active => Color::Blue,
        Class::Down => Color::Red,
        Class::Unknown | Class::Unspecified => Color::Reset,
    }
}

#[cfg(test)]
mod tests {
    use super::Screen;
    use proto::capacity::v1::Fleet;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    fn shown(screen: &mut Screen) -> String {
        let mut terminal = Terminal::new(TestBackend::new(120, 12)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_lost_connection_stays_on_the_screen_until_it_is_back() {
        let mut screen = Screen::new("http://there:1", Fleet::default());
        assert!(shown(&mut screen).contains("No agent has connected yet"));
        screen.take(Err("no collector answers".to_owned()));
        let lost = shown(&mut screen);
        assert!(lost.contains("offers no longer hold") && lost.contains("no collector answers"));
        screen.take(Ok(Fleet::default()));
        assert!(!shown(&mut screen).contains("no longer hold"));
    }

    #[test]
    fn keys_change_the_order() {
        let mut screen = Screen::new("http://there:1", Fleet::default());
        screen.press(KeyCode::Char('s'));
        screen.press(KeyCode::Char('r'));
        assert!(shown(&mut screen).contains("sort: class, reversed"));
    }
}
