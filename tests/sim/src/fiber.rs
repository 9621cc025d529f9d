//! Runs the daemons' own futures without a runtime: they are polled whenever something they may wait for has moved. Nothing in them reads a clock, so the
//! order of polling, which the simulator decides, is all there is.

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;

/// A future under way.
pub struct Fiber<T>(Pin<Box<dyn Future<Output = T>>>);

impl<T> Fiber<T> {
    pub fn new(future: impl Future<Output = T> + 'static) -> Self {
        Self(Box::pin(future))
    }

    /// Goes on as far as it can; the result once it is done.
    pub fn poll(&mut self) -> Option<T> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }
}

/// Whether somebody rang since the last look.
pub fn rang(bell: &Notify) -> bool {
    pin!(bell.notified()).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Polls the fiber in a place; empties the place and gives the result when it is done.
pub fn advance<T>(place: &mut Option<Fiber<T>>) -> Option<T> {
    let done = place.as_mut()?.poll()?;
    *place = None;
    Some(done)
}
