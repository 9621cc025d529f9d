//! Queues: sending a message to one named queue, made when it is missing (dead letters of functions).

use std::collections::BTreeMap;

use aws_sdk_sqs::{Client, types::MessageAttributeValue};

use crate::{Session, causes::causes};

/// A queue could not be reached or refused the message.
#[derive(Debug, thiserror::Error)]
#[error("queue {queue}: {reason}")]
pub struct QueueError {
    /// Name or URL of the queue.
    pub queue: String,
    /// What the service or the network said.
    pub reason: String,
}

/// A client of SQS.
#[derive(Clone, Debug)]
pub struct Queues {
    client: Client,
}

impl Queues {
    /// A client of the session's region and endpoint.
    pub fn new(session: &Session) -> Self {
        Self { client: Client::new(session.shared()) }
    }

    /// Sends one message with string attributes to the queue of that name (made if missing) or URL.
    ///
    /// # Errors
    /// When the queue cannot be reached, or refuses.
    pub async fn send(&self, queue: &str, body: String, attributes: &BTreeMap<String, String>) -> Result<(), QueueError> {
        let failed = |reason: String| QueueError { queue: queue.to_owned(), reason };
        let url = if queue.contains("://") {
            queue.to_owned()
        } else {
            // CreateQueue answers with the URL of a queue that exists with the same attributes.
            self.client
                .create_queue()
                .queue_name(queue)
                .send()
                .await
                .map_err(|error| failed(causes(&error)))?
                .queue_url
                .ok_or_else(|| failed("the service returned no queue URL".to_owned()))?
        };
        let mut request = self.client.send_message().queue_url(url).message_body(body);
        for (name, value) in attributes {
            let value = MessageAttributeValue::builder().data_type("String").string_value(value).build().map_err(|error| failed(error.to_string()))?;
            request = request.message_attributes(name, value);
        }
        request.send().await.map_err(|error| failed(causes(&error)))?;
        Ok(())
    }
}
