//! Shows the story: redrawn in place on a terminal, line by line elsewhere.

use console::{Alignment, Term, pad_str};

use super::picture;
use super::story::Story;

pub(crate) enum Screen {
    /// A terminal that is large enough for the picture.
    Picture { terminal: Term, drawn: usize },
    /// A pipe, a file, or a small terminal.
    Lines { told: usize },
}

impl Screen {
    pub(crate) fn new() -> Self {
        let terminal = Term::stdout();
        match terminal.size_checked() {
            Some((rows, columns))
                if terminal.features().is_attended()
                    && usize::from(rows) >= picture::ROWS
                    && usize::from(columns) >= picture::COLUMNS =>
            {
                Self::Picture { terminal, drawn: 0 }
            }
            _ => {
                println!("{}\n", picture::title());
                Self::Lines { told: 0 }
            }
        }
    }

    pub(crate) fn show(&mut self, story: &Story) -> std::io::Result<()> {
        match self {
            Self::Lines { told } => {
                for event in &story.events[*told..] {
                    println!("{}", picture::event(event));
                }
                *told = story.events.len();
                Ok(())
            }
            Self::Picture { terminal, drawn } => {
                let (rows, columns) = terminal.size();
                // The cursor stands on the line after the picture.
                let lines = usize::from(rows).saturating_sub(1).min(28);
                let mut frame = String::new();
                for line in picture::frame(story, lines) {
                    // Overwrites the old line up to its end, so that nothing flickers.
                    frame += &pad_str(&line, usize::from(columns) - 1, Alignment::Left, Some("…"));
                    frame.push('\n');
                }
                match *drawn {
                    0 => terminal.hide_cursor()?,
                    before => terminal.move_cursor_up(before)?,
                }
                *drawn = lines;
                terminal.write_str(&frame)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Self::Picture { terminal, .. } = self {
            // If this fails, the terminal is gone.
            let _ = terminal.show_cursor();
        }
    }
}
