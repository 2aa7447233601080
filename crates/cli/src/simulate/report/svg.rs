//! One chart as SVG: axes, grid, lines, whiskers.

use std::fmt::Write;

use super::scale::{Scale, Tick};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
/// Space around the plot: left, right, top, bottom.
const MARGINS: [f64; 4] = [58.0, 14.0, 10.0, 46.0];
/// Width of a character of a label, about.
const CHARACTER: f64 = 6.6;
/// Lines with at most so many points show each of them.
const MARKED_POINTS: usize = 24;
/// Colours of lines; then dashes tell apart.
pub(super) const COLOURS: usize = 8;
/// Pixels between the whiskers of neighbouring lines at the same place.
const DODGE: f64 = 4.0;

/// One axis.
#[derive(Debug)]
pub(super) struct Axis {
    /// What it shows, with its unit.
    pub(super) label: String,
    pub(super) scale: Scale,
    pub(super) ticks: Vec<Tick>,
}

impl Axis {
    pub(super) fn new(label: &str, scale: Scale) -> Self {
        Self { label: label.into(), ticks: scale.ticks(), scale }
    }
}

/// A line of a chart.
#[derive(Debug)]
pub(super) struct Line {
    /// What it shows.
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Smallest and largest value at each point; empty where there are none.
    pub(super) ranges: Vec<(f64, f64)>,
}

/// A chart; the colour of a line is that of its place.
#[derive(Debug)]
pub(super) struct Chart {
    /// What it shows, for people who cannot see it.
    pub(super) about: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
}

impl Chart {
    /// The chart as an `<svg>` element.
    pub(super) fn svg(&self) -> String {
        let about = escape(&self.about);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{about}\"><title>{about}</title>"
        );
        self.axes(&mut svg);
        for (index, line) in self.lines.iter().enumerate() {
            self.line(&mut svg, index, line);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn x(&self, value: f64) -> f64 {
        MARGINS[0] + self.x.scale.at(value) * (WIDTH - MARGINS[0] - MARGINS[1])
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - MARGINS[3] - self.y.scale.at(value) * (HEIGHT - MARGINS[2] - MARGINS[3])
    }

    fn axes(&self, svg: &mut String) {
        let (left, right, top, bottom) = (MARGINS[0], WIDTH - MARGINS[1], MARGINS[2], HEIGHT - MARGINS[3]);
        let mut grid = String::new();
        let mut labels = String::new();
        let mut free_from = f64::NEG_INFINITY;
        for (value, label) in &self.x.ticks {
            let (x, half) = (self.x(*value), label.chars().count() as f64 * CHARACTER / 2.0);
            let _ = write!(grid, "M{x:.1} {top}V{bottom}");
            // A label that would touch the one before is left out; its grid line stays.
            if x - half >= free_from {
                let _ =
                    write!(labels, "<text x=\"{x:.1}\" y=\"{:.1}\">{}</text>", bottom + 16.0, escape(label));
                free_from = x + half + CHARACTER;
            }
        }
        let _ = write!(svg, "<g class=\"x\">{labels}</g><g class=\"y\">");
        for (value, label) in &self.y.ticks {
            let y = self.y(*value);
            let _ = write!(grid, "M{left} {y:.1}H{right}");
            let _ =
                write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", left - 6.0, y + 4.0, escape(label));
        }
        let _ = write!(
            svg,
            "</g><path class=\"grid\" d=\"{grid}\"/><path class=\"axis\" d=\"M{left} {top}V{bottom}H{right}\"/>\
             <g class=\"x label\"><text x=\"{:.1}\" y=\"{:.1}\">{}</text>\
             <text transform=\"translate(14 {:.1}) rotate(-90)\">{}</text></g>",
            f64::midpoint(left, right),
            HEIGHT - 8.0,
            escape(&self.x.label),
            f64::midpoint(top, bottom),
            escape(&self.y.label)
        );
    }

    fn line(&self, svg: &mut String, index: usize, line: &Line) {
        let shift = match line.ranges.is_empty() {
            true => 0.0,
            false => (index as f64 - (self.lines.len() - 1) as f64 / 2.0) * DODGE,
        };
        let places: Vec<(f64, f64)> =
            line.points.iter().map(|&(x, y)| (self.x(x) + shift, self.y(y))).collect();
        let _ = write!(svg, "<g class=\"{}\"><title>{}</title>", class(index), escape(&line.name));
        let _ = write!(svg, "<path class=\"line\" d=\"{}\"/>", path(&places));
        let whiskers: String = places
            .iter()
            .zip(&line.ranges)
            .map(|(&(x, _), &(low, high))| {
                let (low, high, from, to) = (self.y(low), self.y(high), x - 3.0, x + 3.0);
                format!("M{from:.1} {low:.1}H{to:.1}M{x:.1} {low:.1}V{high:.1}M{from:.1} {high:.1}H{to:.1}")
            })
            .collect();
        if !whiskers.is_empty() {
            let _ = write!(svg, "<path class=\"whisker\" d=\"{whiskers}\"/>");
        }
        if places.len() <= MARKED_POINTS {
            let marks: String = places.iter().map(|&(x, y)| mark(index, x, y)).collect();
            let _ = write!(svg, "<path class=\"mark\" d=\"{marks}\"/>");
        }
        svg.push_str("</g>");
    }
}

/// The sample of a line that a legend shows.
pub(super) fn swatch(index: usize) -> String {
    format!(
        "<svg class=\"swatch {}\" viewBox=\"0 0 30 12\" aria-hidden=\"true\"><path class=\"line\" d=\"M1 6H29\"/>\
         <path class=\"mark\" d=\"{}\"/></svg>",
        class(index),
        mark(index, 15.0, 6.0)
    )
}

fn class(index: usize) -> String {
    format!("c{} d{}", index % COLOURS, index / COLOURS % 3)
}

/// A path through places, without those that are where the one before is.
fn path(places: &[(f64, f64)]) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for (x, y) in places {
        let place = format!("{x:.1} {y:.1}");
        if place != last {
            text.push(if text.is_empty() { 'M' } else { 'L' });
            text.push_str(&place);
            last = place;
        }
    }
    text
}

/// A shape that tells lines apart without colour: square, disc, triangle, diamond, upturned triangle.
fn mark(index: usize, x: f64, y: f64) -> String {
    match index % 5 {
        0 => format!("M{:.1} {:.1}h6v6h-6z", x - 3.0, y - 3.0),
        1 => format!("M{:.1} {y:.1}a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0 -6.8 0z", x - 3.4),
        2 => format!("M{x:.1} {:.1}l4 7h-8z", y - 4.4),
        3 => format!("M{x:.1} {:.1}l4.2 4.2l-4.2 4.2l-4.2 -4.2z", y - 4.2),
        _ => format!("M{x:.1} {:.1}l4 -7h-8z", y + 4.4),
    }
}

/// Text as it may stand in HTML and SVG, in elements and attributes. Characters that XML has no place for become `�`.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}
