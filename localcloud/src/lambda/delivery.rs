//! Delivery: which function gets which event when, and what happens after a try (Lambda's asynchronous rules).
//!
//! A failed try (error, crash, timeout) is repeated after each wait of `retry_after_ms`; after the last one the event
//! goes to the dead-letter queue with the attributes AWS sets, and to `failed/`.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Notify;
use vp_cloud::sqs::Queues;

use super::{
    config::{Config, Function},
    event::Created,
    journal::{Event, Journal, Object, Standing},
};

/// An event that a worker is at.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// The event.
    pub event: Event,
    /// When the try is over, Unix milliseconds.
    pub deadline_unix_ms: u64,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Event>,
    in_flight: BTreeMap<usize, InFlight>,
}

/// The queues of all functions.
pub struct Delivery {
    /// The service's configuration.
    pub config: Arc<Config>,
    /// What survives.
    pub journal: Journal,
    queues: Option<Queues>,
    lanes: Mutex<BTreeMap<String, Lane>>,
    wake: BTreeMap<String, Notify>,
    taken: BTreeMap<String, Notify>,
}

/// Unix time, milliseconds.
pub fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn wants(function: &Function, created: &Created) -> bool {
    function.bucket == created.bucket
        && function.prefix.as_ref().is_none_or(|prefix| created.key.starts_with(prefix))
        && function.suffix.as_ref().is_none_or(|suffix| created.key.ends_with(suffix))
}

impl Delivery {
    /// Empty queues for the configured functions.
    pub fn new(config: Arc<Config>, journal: Journal, queues: Option<Queues>) -> Self {
        let each = || config.functions.iter().map(|function| (function.name.clone(), Notify::new())).collect();
        let lanes = config.functions.iter().map(|function| (function.name.clone(), Lane::default())).collect();
        Self { wake: each(), taken: each(), lanes: Mutex::new(lanes), config, journal, queues }
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<String, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues what was kept before a restart. Returns how many events that are.
    pub fn resume(&self) -> usize {
        let kept = self.journal.kept().unwrap_or_else(|error| {
            tracing::error!(%error, "kept events cannot be read");
            Vec::new()
        });
        kept.into_iter().map(|event| self.queue(event)).count()
    }

    fn queue(&self, event: Event) {
        let name = event.function.clone();
        match self.lanes().get_mut(&name) {
            Some(lane) => lane.waiting.push_back(event),
            None => tracing::warn!(function = name, "event of a function that is no more stays in its file"),
        }
        if let Some(wake) = self.wake.get(&name) {
            wake.notify_one();
        }
    }

    /// Accepts a created object for every function that wants it: durable when this returns.
    ///
    /// # Errors
    /// When the disk refuses; nothing was promised then.
    pub fn accept(&self, created: &Created) -> io::Result<usize> {
        let mut accepted = 0;
        for function in self.config.functions.iter().filter(|function| wants(function, created)) {
            let object = Object { bucket: created.bucket.clone(), key: created.key.clone(), etag: created.etag.clone() };
            let event = Event {
                id: uuid::Uuid::new_v4().to_string(),
                function: function.name.clone(),
                payload: created.payload(&self.config.s3.region, &function.name),
                object,
                failures: 0,
                last_error: None,
            };
            self.journal.keep(&event)?;
            self.journal.note(&function.name, &event.object, Standing::Accepted, now_unix_ms())?;
            tracing::info!(function = function.name, id = event.id, bucket = created.bucket, key = created.key, how = created.how, "event accepted");
            self.queue(event);
            accepted += 1;
        }
        Ok(accepted)
    }

    /// A configured function.
    pub fn function_named(&self, name: &str) -> Option<&Function> {
        self.config.functions.iter().find(|function| function.name == name)
    }

    /// The next event for a worker; waits until there is one. A worker that asks again has lost what it was at.
    pub async fn next(self: &Arc<Self>, function: &Function, worker: usize) -> InFlight {
        self.fail_worker(&function.name, worker, "Runtime.ExitError", "the function asked for an event without having answered the last one").await;
        loop {
            let notified = self.wake.get(&function.name).map(Notify::notified);
            let taken = self.lanes().get_mut(&function.name).and_then(|lane| {
                let event = lane.waiting.pop_front()?;
                let in_flight = InFlight { event, deadline_unix_ms: now_unix_ms() + function.timeout_ms };
                lane.in_flight.insert(worker, in_flight.clone());
                Some((in_flight, lane.waiting.is_empty()))
            });
            if let Some((in_flight, empty)) = taken {
                if let (false, Some(wake)) = (empty, self.wake.get(&function.name)) {
                    wake.notify_one();
                }
                if let Some(taken) = self.taken.get(&function.name) {
                    taken.notify_waiters();
                }
                return in_flight;
            }
            match notified {
                Some(notified) => notified.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Waits until the worker's try has outlived its deadline.
    pub async fn overdue(&self, function: &str, worker: usize) {
        loop {
            let Some(taken) = self.taken.get(function) else { return std::future::pending().await };
            let mut notified = std::pin::pin!(taken.notified());
            notified.as_mut().enable();
            let deadline = self.lanes().get(function).and_then(|lane| Some(lane.in_flight.get(&worker)?.deadline_unix_ms));
            match deadline.map(|deadline| deadline.saturating_sub(now_unix_ms())) {
                None => notified.await,
                Some(0) => return,
                Some(left) => drop(tokio::time::timeout(Duration::from_millis(left), notified).await),
            }
        }
    }

    fn take(&self, function: &str, id: &str) -> Option<Event> {
        let mut lanes = self.lanes();
        let lane = lanes.get_mut(function)?;
        let worker = *lane.in_flight.iter().find(|(_, in_flight)| in_flight.event.id == id)?.0;
        lane.in_flight.remove(&worker).map(|in_flight| in_flight.event)
    }

    /// A function has answered: the event is delivered. False when no such try is under way.
    pub fn succeed(&self, function: &str, id: &str) -> bool {
        let Some(event) = self.take(function, id) else { return false };
        let noted = self.journal.note(function, &event.object, Standing::Done, now_unix_ms()).and_then(|()| self.journal.forget(&event));
        match noted {
            Ok(()) => tracing::info!(function, id, failures = event.failures, "event delivered"),
            Err(error) => tracing::error!(function, id, %error, "event delivered but not noted, it will be delivered again"),
        }
        true
    }

    /// A function has answered with an error. False when no such try is under way.
    pub async fn fail(self: &Arc<Self>, function: &str, id: &str, kind: &str, message: &str) -> bool {
        match self.take(function, id) {
            Some(event) => {
                self.failed(event, kind, message).await;
                true
            }
            None => false,
        }
    }

    /// Fails what a worker was at, if it was at anything: it crashed, hung or forgot.
    pub async fn fail_worker(self: &Arc<Self>, function: &str, worker: usize, kind: &str, message: &str) {
        let event = self.lanes().get_mut(function).and_then(|lane| lane.in_flight.remove(&worker));
        if let Some(in_flight) = event {
            self.failed(in_flight.event, kind, message).await;
        }
    }

    async fn failed(self: &Arc<Self>, mut event: Event, kind: &str, message: &str) {
        event.failures += 1;
        event.last_error = Some(format!("{kind}: {message}"));
        let wait_ms = self.config.retry_after_ms.get(event.failures as usize - 1).copied();
        tracing::warn!(function = event.function, id = event.id, failures = event.failures, kind, message, retry_ms = wait_ms, "invocation failed");
        if let Err(error) = self.journal.keep(&event) {
            tracing::error!(id = event.id, %error, "failed try cannot be written down");
        }
        if let Some(wait_ms) = wait_ms {
            let delivery = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                delivery.queue(event);
            });
            return;
        }
        self.dead_letter(&event, message).await;
        let noted = self.journal.note(&event.function, &event.object, Standing::Failed, now_unix_ms()).and_then(|()| self.journal.put_aside(&event));
        if let Err(error) = noted {
            tracing::error!(id = event.id, %error, "event cannot be put aside");
        }
    }

    async fn dead_letter(&self, event: &Event, message: &str) {
        let queue = self.function_named(&event.function).and_then(|function| function.dead_letter_queue.as_deref());
        let (Some(queue), Some(queues)) = (queue, &self.queues) else { return };
        // AWS: RequestID, ErrorCode (an HTTP status) and the first kilobyte of ErrorMessage.
        let message: String = message.chars().take(1024).collect();
        let attributes = BTreeMap::from([
            ("RequestID".to_owned(), event.id.clone()),
            ("ErrorCode".to_owned(), "200".to_owned()),
            ("ErrorMessage".to_owned(), if message.is_empty() { "-".to_owned() } else { message }),
        ]);
        if let Err(error) = queues.send(queue, event.payload.to_string(), &attributes).await {
            tracing::error!(id = event.id, %error, "dead letter was not sent, the event stays in the failed folder");
        }
    }
}
