//! Orders to a guest's devices and machine from outside, while somebody else has hold of the guest itself.

use tokio::sync::{mpsc, oneshot};

/// By which orders are given. Clones give them to the same guest.
#[derive(Clone, Debug)]
pub struct Orders(mpsc::UnboundedSender<HostOrder>);

/// An order, and who waits for what comes of it.
#[derive(Debug)]
pub(crate) struct HostOrder {
    /// In the words of `belljar-ctl`.
    pub(crate) text: String,
    pub(crate) answer: oneshot::Sender<Result<String, String>>,
}

/// Where a guest takes them.
#[derive(Debug)]
pub(crate) struct Inbox {
    orders: Orders,
    inbox: mpsc::UnboundedReceiver<HostOrder>,
}

impl Default for Inbox {
    fn default() -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        Self { orders: Orders(orders), inbox }
    }
}

impl Inbox {
    /// By which orders come here.
    pub(crate) fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Waits for an order.
    pub(crate) async fn next(&mut self) -> HostOrder {
        match self.inbox.recv().await {
            Some(order) => order,
            // Who sends is held here.
            None => std::future::pending().await,
        }
    }
}

impl Orders {
    /// Orders that nothing but this function carries out: for the tests of who gives them. Must be called within a tokio runtime.
    #[must_use]
    pub fn for_tests(mut act: impl FnMut(&str) -> Result<String, String> + Send + 'static) -> Self {
        let mut inbox = Inbox::default();
        let orders = inbox.orders();
        tokio::spawn(async move {
            loop {
                let HostOrder { text, answer } = inbox.next().await;
                drop(answer.send(act(&text)));
            }
        });
        orders
    }

    /// Gives an order, which is carried out while a command runs in the guest, and waits until it is; gives what there is to say.
    ///
    /// # Errors
    /// Why it is not, for a person.
    pub async fn give(&self, text: &str) -> Result<String, String> {
        let gone = || "the guest has ended".to_owned();
        let (answer, answered) = oneshot::channel();
        self.0.send(HostOrder { text: text.to_owned(), answer }).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_is_answered_or_the_guest_is_gone() {
        let mut inbox = Inbox::default();
        let orders = inbox.orders();
        let asked = tokio::spawn({
            let orders = orders.clone();
            async move { orders.give("nmi").await }
        });
        let order = inbox.next().await;
        assert_eq!(order.text, "nmi");
        order.answer.send(Ok("done".to_owned())).unwrap();
        assert_eq!(asked.await.unwrap(), Ok("done".to_owned()));
        let asked = tokio::spawn({
            let orders = orders.clone();
            async move { orders.give("nmi").await }
        });
        drop(inbox.next().await);
        assert!(asked.await.unwrap().is_err());
        drop(inbox);
        assert!(orders.give("nmi").await.unwrap_err().contains("has ended"));
    }
}
