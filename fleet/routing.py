"""Ray Serve's choice of an engine for a request: the one that has the beginning of its prompt, unless it is busy."""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from vlm_trt.fleet.favourites import ranked


class PrefixRouter(RequestRouter):
    """Every key has a favourite engine, found by rendezvous hashing: no ingress has to remember or to tell another, and
    where an engine comes or goes no keys move but its own. Given by its path to `request_router_config`."""

    def initialize_state(self, most_ahead: int = 1) -> None:
        """
        Args:
            most_ahead: by how many requests the favourite's queue may be longer than the shortest one.
        """
        self._most_ahead = most_ahead

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Engines in ranks; Ray takes the least busy of the first rank that has room."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        if pending_request is None or not pending_request.args:
            return [candidate_replicas]
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        queues = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in by_id.items()}
        ranks = ranked(str(pending_request.args[0]), queues, self._most_ahead)
        return [[by_id[name] for name in rank] for rank in ranks]
