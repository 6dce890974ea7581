//! One call under way: who may book what, slot by slot.

use std::sync::Arc;

use smallvec::SmallVec;

use super::book::{Book, Users};
use super::call::{Call, RunAnswer, RunAsk, RunShort};
use super::row::{Row, State, lane_of};
use crate::bounds::PROBE_PATIENCE;
use crate::clock::Instant;
use crate::schedule::share;

/// Nobody is told to stay away longer than this, and a little per competitor.
const ASK_MAX: i64 = 1_000_000_000;
const ASK_MAX_EACH: i64 = 1_000_000;

/// Beyond this no rounds are made to find the exact instant.
const ASK_FAR: i64 = 1_000_000_000_000_000_000;

/// Where a row of the call lies in the book.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Plain(usize),
    Keyed((Arc<str>, Arc<str>)),
}

/// One call under way.
pub(super) struct Deal<'a> {
    pub(super) call: &'a Call,
    pub(super) users: Users,
    pub(super) now: i64,
    pub(super) places: SmallVec<[Place; 4]>,
    /// Whether flows compete: with one lane and one replica there is only one.
    pub(super) contested: bool,
}

impl Book {
    pub(super) fn open(&mut self, deal: &Deal<'_>) {
        if !deal.contested {
            return;
        }
        for run in &deal.call.runs {
            for place in deal.places_of(run) {
                if let Some(row) = self.row_mut(place) {
                    row.open(run.lane, deal.call.replica, deal.now);
                }
            }
        }
        for place in &deal.places {
            if let Some(row) = self.row_mut(place) {
                row.opened(deal.now);
            }
        }
    }

    /// Goes round the lanes, one request each, until nobody can book any more. Within a lane runs
    /// come in order; one that is held lets the next try.
    pub(super) fn deal(&mut self, deal: &Deal<'_>, answers: &mut [RunAnswer]) {
        let call = deal.call;
        let mut next: SmallVec<[(u8, usize); 4]> = SmallVec::new();
        for (index, run) in call.runs.iter().enumerate() {
            if !next.iter().any(|(lane, _)| *lane == run.lane) {
                next.push((run.lane, index));
            }
        }
        loop {
            let mut booked = false;
            for (lane, at) in &mut next {
                booked |= self.turn_of(deal, *lane, at, answers);
            }
            if !booked {
                return;
            }
        }
    }

    /// Books one request of a lane, from its run at position `at` on. Returns whether there was one.
    fn turn_of(
        &mut self,
        deal: &Deal<'_>,
        lane: u8,
        at: &mut usize,
        answers: &mut [RunAnswer],
    ) -> bool {
        while let Some((run, answer)) = deal.call.runs.get(*at).zip(answers.get_mut(*at)) {
            if run.lane != lane {
                *at += 1;
                continue;
            }
            if answer.slots.len() < run.want as usize {
                match self.book_one(deal, run) {
                    Ok((slot, probe)) => {
                        answer.probe |= probe && answer.slots.is_empty();
                        answer.slots.push(slot);
                        return true;
                    }
                    Err(short) => answer.short = Some(short),
                }
            }
            self.close(deal, run, answer);
            *at += 1;
        }
        false
    }

    fn close(&mut self, deal: &Deal<'_>, run: &RunAsk, answer: &RunAnswer) {
        if !deal.contested {
            return;
        }
        let left = i64::from(run.waiting) - i64::try_from(answer.slots.len()).unwrap_or(0);
        for (position, place) in run.rows.iter().zip(deal.places_of(run)) {
            let holds = answer
                .short
                .filter(|short| short.held_by == Some(*position))
                .map(|short| {
                    (
                        left.max(1),
                        short.ask_again.unwrap_or(deal.now).max(deal.now),
                    )
                });
            if let Some(row) = self.row_mut(place) {
                row.close(run.lane, deal.call.replica, holds, deal.now);
            }
        }
    }

    fn book_one(&mut self, deal: &Deal<'_>, run: &RunAsk) -> Result<(i64, bool), RunShort> {
        let call = deal.call;
        if let Some(position) = self.out_of_permits(deal, run) {
            // Alone we hear of every permit that comes back; of others' we do not.
            let poll = deal.now + pause(call.horizon);
            let ask_again = (!deal.users.alone()).then_some(poll);
            return Err(self.short(deal, run, Some(position), ask_again));
        }
        let from = deal.now + call.lead;
        let (at, held_by) = self.earliest(deal, run, from);
        let reserved = self.has_reserve(deal, run);
        let reach = if reserved {
            2 * call.horizon
        } else {
            call.horizon
        };
        if at > from + reach {
            let ask_again = self.ask_again(deal, run, at, held_by);
            return Err(self.short(deal, run, held_by, Some(ask_again)));
        }
        if deal.contested
            && !reserved
            && let Some(position) = self.unfair(deal, run)
        {
            let poll = deal.now + pause(call.horizon);
            return Err(self.short(deal, run, Some(position), Some(poll)));
        }
        self.take(deal, run, at, reserved);
        Ok((at, self.block.book(Instant::from_nanos(at), PROBE_PATIENCE)))
    }

    fn short(
        &self,
        deal: &Deal<'_>,
        run: &RunAsk,
        held_by: Option<u8>,
        ask_again: Option<i64>,
    ) -> RunShort {
        let row = held_by.and_then(|position| self.row(deal.places.get(usize::from(position))?));
        let (crowd, crowd_weight) = row.filter(|_| deal.contested).map_or((0, 0), |row| {
            row.crowd(run.lane, deal.call.replica, &deal.call.lanes, deal.now)
        });
        RunShort {
            held_by,
            ask_again,
            crowd,
            crowd_weight,
        }
    }

    fn out_of_permits(&self, deal: &Deal<'_>, run: &RunAsk) -> Option<u8> {
        // What was promised to those who fell silent is kept besides what they hold, which may be the same.
        let there = |max| match deal.users {
            Users::Many { lost } if lost > 0 => share(max, 1_000_000 - lost),
            Users::One | Users::Many { .. } => max,
        };
        let positions = run.rows.iter().zip(deal.places_of(run));
        positions
            .filter_map(|(position, place)| Some((*position, self.row(place)?)))
            .find(|(_, row)| row.max().is_some_and(|max| row.held_by_all() >= there(max)))
            .map(|(position, _)| position)
    }

    /// The earliest instant that all agree on, and who moved it last. Each schedule only moves it
    /// later, and is content with its own answer, so a few rounds settle it.
    fn earliest(&self, deal: &Deal<'_>, run: &RunAsk, from: i64) -> (i64, Option<u8>) {
        let mut at = self.block.earliest(Instant::from_nanos(from));
        at = at.max(Instant::from_nanos(self.quiet));
        let mut held_by = None;
        loop {
            let before = at;
            for ((position, cost), place) in
                run.rows.iter().zip(&run.costs).zip(deal.places_of(run))
            {
                let Some(State::Rate(schedule)) = self.row(place).map(|row| &row.state) else {
                    continue;
                };
                let next = match deal.users {
                    Users::Many { lost } if lost > 0 => {
                        schedule.at_share(1_000_000 - lost).earliest(at, *cost)
                    }
                    _ => schedule.earliest(at, *cost),
                };
                if next > at {
                    (at, held_by) = (next, Some(*position));
                }
            }
            // A schedule that can never let it through answers beyond any horizon.
            if at == before || at.as_nanos() > from.saturating_add(ASK_FAR) {
                return (at.as_nanos(), held_by);
            }
        }
    }

    /// Whether the lane has reserve left in every schedule.
    fn has_reserve(&self, deal: &Deal<'_>, run: &RunAsk) -> bool {
        let left = |row: &Row| {
            let used = row
                .reserves
                .get(usize::from(run.lane))
                .copied()
                .unwrap_or(0);
            row.max().is_some() || used <= deal.now + deal.call.horizon
        };
        lane_of(&deal.call.lanes, run.lane).1 > 0
            && deal
                .places_of(run)
                .all(|place| self.row(place).is_none_or(left))
    }

    fn unfair(&self, deal: &Deal<'_>, run: &RunAsk) -> Option<u8> {
        let Call {
            replica,
            horizon,
            lanes,
            ..
        } = deal.call;
        run.rows
            .iter()
            .zip(deal.places_of(run))
            .find(|(_, place)| {
                self.row(place)
                    .is_some_and(|row| !row.is_fair(run.lane, *replica, *horizon, lanes, deal.now))
            })
            .map(|(position, _)| *position)
    }

    /// When asking again is worth it: alone, when the slot comes into reach; among others, at one's
    /// place in the round, but not before half a horizon has passed.
    fn ask_again(&self, deal: &Deal<'_>, run: &RunAsk, at: i64, held_by: Option<u8>) -> i64 {
        let Call {
            replica,
            horizon,
            lead,
            ..
        } = deal.call;
        if deal.users.alone() {
            return at - horizon;
        }
        let row = held_by.and_then(|position| self.row(deal.places.get(usize::from(position))?));
        let (rank, others, interval) = row.map_or((0, 0, 0), |row| {
            let others = row.competitors(deal.now);
            (
                row.rank(run.lane, *replica, deal.now),
                others,
                row.interval(),
            )
        });
        let turn = at
            .saturating_add(rank.saturating_mul(interval))
            .saturating_sub(horizon + lead);
        turn.max(deal.now + pause(*horizon))
            .min(deal.now + ASK_MAX + others * ASK_MAX_EACH)
    }

    fn take(&mut self, deal: &Deal<'_>, run: &RunAsk, at: i64, reserved: bool) {
        let lanes = &deal.call.lanes;
        for (cost, place) in run.costs.iter().zip(deal.places_of(run)) {
            let Some(row) = self.row_mut(place) else {
                continue;
            };
            match &mut row.state {
                State::Rate(schedule) => {
                    let at = Instant::from_nanos(at);
                    match deal.users {
                        Users::Many { lost } if lost > 0 => {
                            schedule.book_at_share(1_000_000 - lost, at, *cost);
                        }
                        _ => schedule.book(at, *cost),
                    }
                    if reserved {
                        row.use_reserve(run.lane, *cost, lanes, deal.now);
                    } else if deal.contested {
                        row.charge(run.lane, deal.call.replica, *cost, lanes, deal.now);
                    }
                }
                State::Held(_) => {
                    if let Some(held) = row.held(deal.call.replica) {
                        *held += 1;
                    }
                }
            }
        }
    }
}

impl Deal<'_> {
    fn places_of<'b>(&'b self, run: &'b RunAsk) -> impl Iterator<Item = &'b Place> {
        run.rows
            .iter()
            .filter_map(|position| self.places.get(usize::from(*position)))
    }
}

/// How long who could not book all leaves the ledger alone: more than half a horizon, so that two
/// calls per horizon suffice, and so much less than a whole one that no slot passes unbooked.
const fn pause(horizon: i64) -> i64 {
    horizon / 8 * 5
}
