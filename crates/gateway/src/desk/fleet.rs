//! Upstreams that come and go, and the models that they serve.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use outrank_core::Timestamp;

use super::Models;
use super::overrun::Overrun;
use super::site::Site;
use super::state::{Pool, State};
use crate::config::{ConfigError, GatewayConfig, Mode};
use crate::upstream::Upstream;

/// Models that have a queue of their own, at most; others share one.
const MAX_MODELS: usize = 256;

impl State {
    pub(super) fn reconfigure(
        &mut self,
        now: Timestamp,
        config: Arc<GatewayConfig>,
        upstreams: &[Arc<Upstream>],
    ) -> Result<(), ConfigError> {
        self.config = config;
        for site in &mut self.sites {
            site.removed = !upstreams.iter().any(|upstream| upstream.is_same(&site.upstream));
        }
        for upstream in upstreams {
            match self.sites.iter_mut().find(|site| upstream.is_same(&site.upstream)) {
                Some(site) => {
                    site.window.reconfigure(upstream.window);
                    if !upstream.wants_seats() {
                        site.window.engine_says(None);
                    }
                    if let Some(models) = &upstream.config.models {
                        site.models = Models::Configured(models.clone());
                    }
                    // What runs there keeps the one that it was given.
                    site.upstream = Arc::clone(upstream);
                }
                None => self.add_site(Site::new(Arc::clone(upstream))),
            }
        }
        self.rebuild()?;
        self.pump(now);
        Ok(())
    }

    /// Takes the slot of one that has gone for good, if there is one.
    fn add_site(&mut self, site: Site) {
        let gone = self.sites.iter_mut().find(|site| site.removed && site.in_flight == 0);
        match gone {
            Some(slot) => *slot = site,
            None => self.sites.push(site),
        }
    }

    pub(super) fn probed(&mut self, now: Timestamp, upstream: &Upstream, up: bool, models: Option<Models>) {
        let Some(site) = self.site_of(upstream) else { return };
        if site.up != up {
            tracing::warn!(upstream = site.upstream.name, up, "health check");
            site.window.forget_seats();
        }
        site.up = up;
        let changed = match models {
            Some(models) if site.takes_any() && site.models != models => {
                site.models = models;
                true
            }
            _ => false,
        };
        if changed && let Err(error) = self.rebuild() {
            tracing::error!(%error, "cannot take the models of an upstream");
        }
        self.pump(now);
    }

    pub(super) fn engine_says(&mut self, now: Timestamp, upstream: &Upstream, seats: Option<u32>) {
        let Some(site) = self.site_of(upstream) else { return };
        if site.window.engine_says(seats) {
            tracing::info!(upstream = site.upstream.name, ?seats, "what the engine says of its seats");
        }
        self.pump(now);
    }

    fn site_of(&mut self, upstream: &Upstream) -> Option<&mut Site> {
        self.sites.iter_mut().find(|site| !site.removed && upstream.is_same(&site.upstream))
    }

    /// Makes a queue for each model that somebody serves, and says which upstreams serve it. Queues are never taken away, because
    /// somebody may wait in them.
    fn rebuild(&mut self) -> Result<(), ConfigError> {
        let mut wanted: Vec<String> = self.models();
        wanted.truncate(MAX_MODELS);
        if self.sites.iter().any(|site| !site.removed && site.takes_any()) {
            wanted.push(String::new());
        }
        let mut by_model = HashMap::new();
        for model in wanted {
            let known = self.pools.iter().position(|pool| pool.model.as_deref().unwrap_or("") == model);
            let at = match known {
                Some(at) => at,
                None => {
                    let pool = self.new_pool(&model)?;
                    self.pools.push(pool);
                    self.pools.len() - 1
                }
            };
            by_model.insert(model, at);
        }
        self.by_model = by_model;
        for pool in &mut self.pools {
            let serves = |site: &Site| match &pool.model {
                Some(model) => site.serves(model),
                None => site.takes_any(),
            };
            let sites = self.sites.iter().enumerate().filter(|(_, site)| !site.removed && serves(site));
            pool.sites = sites.map(|(at, _)| at).collect();
            let held = pool.sites.iter().filter(|&&at| self.sites[at].upstream.mode == Mode::Hold);
            pool.held.set_seats(held.map(|&at| self.sites[at].window.size()).sum());
        }
        Ok(())
    }

    fn new_pool(&self, model: &str) -> Result<Pool, ConfigError> {
        let (mut held, mut stamped) = (self.config.book(1)?, self.config.book(1)?);
        for &(lane, weight) in &self.weights {
            held.set_weight(lane, weight);
            stamped.set_weight(lane, weight);
        }
        Ok(Pool {
            model: (!model.is_empty()).then(|| model.to_owned()),
            held,
            stamped,
            sites: Vec::new(),
            unavailable_since: None,
            answers: 0,
            overrun: Overrun::default(),
        })
    }

    pub(super) fn set_weights(&mut self, weights: Vec<(usize, f64)>) {
        for pool in &mut self.pools {
            for &(lane, weight) in &weights {
                pool.held.set_weight(lane, weight);
                pool.stamped.set_weight(lane, weight);
            }
        }
        self.shares.set_weights(&weights);
        self.weights = weights;
    }

    /// Closes the connections of upstreams that were taken out and have nothing left to do.
    pub(super) fn retire(&mut self) {
        for site in &self.sites {
            if site.removed && site.in_flight == 0 {
                site.upstream.connections.close_idle(Duration::ZERO);
            }
        }
    }

    /// Names of all models that are served, in order.
    pub(super) fn models(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for site in self.sites.iter().filter(|site| !site.removed) {
            if let Models::Listed(listed) | Models::Configured(listed) = &site.models {
                names.extend(listed.iter().cloned());
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}
