CREATE TABLE deployments (
	id SERIAL NOT NULL, 
	problem VARCHAR(255) NOT NULL, 
	version INTEGER NOT NULL, 
	action VARCHAR(16) NOT NULL, 
	by VARCHAR(255) NOT NULL, 
	at TIMESTAMP WITH TIME ZONE NOT NULL, 
	reason TEXT NOT NULL, 
	evidence JSON NOT NULL, 
	previous INTEGER, 
	after INTEGER, 
	PRIMARY KEY (id), 
	UNIQUE (problem, after)
);
CREATE INDEX ix_deployments_problem ON deployments (problem);
CREATE TABLE events (
	number BIGSERIAL NOT NULL, 
	problem VARCHAR(64) NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	"user" VARCHAR(255) NOT NULL, 
	item VARCHAR(255) NOT NULL, 
	basket VARCHAR(255) NOT NULL, 
	day DATE NOT NULL, 
	quantity FLOAT NOT NULL, 
	place VARCHAR(255), 
	recorded TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (problem, id)
);
CREATE TABLE rejected_events (
	number BIGSERIAL NOT NULL, 
	problem VARCHAR(64) NOT NULL, 
	event TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	recorded TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (number)
);
CREATE INDEX ix_rejected_events_problem ON rejected_events (problem);
CREATE TABLE rollout_counts (
	rollout INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	candidate BOOLEAN NOT NULL, 
	server VARCHAR(64) NOT NULL, 
	requests BIGINT NOT NULL, 
	errors BIGINT NOT NULL, 
	latency JSON NOT NULL, 
	PRIMARY KEY (rollout, step, candidate, server)
);
CREATE TABLE rollout_side_by_side (
	rollout INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	server VARCHAR(64) NOT NULL, 
	growth JSON NOT NULL, 
	excess FLOAT NOT NULL, 
	pairs BIGINT NOT NULL, 
	slower BIGINT NOT NULL, 
	PRIMARY KEY (rollout, step, server)
);
CREATE TABLE servers (
	server VARCHAR(64) NOT NULL, 
	problem VARCHAR(255) NOT NULL, 
	champion INTEGER, 
	candidate INTEGER, 
	error TEXT, 
	at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (server, problem)
);
CREATE TABLE monitoring_runs (
	problem VARCHAR(64) NOT NULL, 
	until TIMESTAMP WITH TIME ZONE NOT NULL, 
	retrain BOOLEAN NOT NULL, 
	decision TEXT NOT NULL, 
	recorded TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (problem, until)
);
CREATE TABLE retrainings (
	id VARCHAR(36) NOT NULL, 
	problem VARCHAR(64) NOT NULL, 
	at TIMESTAMP WITH TIME ZONE NOT NULL, 
	as_of DATE, 
	trigger VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	by VARCHAR(255) NOT NULL, 
	started TIMESTAMP WITH TIME ZONE NOT NULL, 
	ended TIMESTAMP WITH TIME ZONE, 
	version INTEGER, 
	promoted BOOLEAN, 
	cpu_minutes FLOAT, 
	outcome TEXT, 
	PRIMARY KEY (id)
);
CREATE INDEX ix_retrainings_problem ON retrainings (problem);
CREATE TABLE labels (
	number BIGSERIAL NOT NULL, 
	problem VARCHAR(64) NOT NULL, 
	id VARCHAR(255), 
	entity VARCHAR(255), 
	day INTEGER, 
	second BIGINT, 
	value TEXT NOT NULL, 
	known_at BIGINT NOT NULL, 
	PRIMARY KEY (number)
);
CREATE INDEX labels_by_entity ON labels (problem, entity);
CREATE INDEX labels_by_id ON labels (problem, id);
CREATE TABLE prediction_blocks (
	number BIGSERIAL NOT NULL, 
	outputs BYTEA NOT NULL, 
	features BYTEA NOT NULL, 
	PRIMARY KEY (number)
);
CREATE TABLE prediction_cohorts (
	problem VARCHAR(64) NOT NULL, 
	week DATE NOT NULL, 
	version INTEGER NOT NULL, 
	predictions INTEGER NOT NULL, 
	matured INTEGER NOT NULL, 
	score TEXT, 
	estimated TEXT, 
	PRIMARY KEY (problem, week, version)
);
CREATE TABLE predictions (
	problem VARCHAR(64) NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	version INTEGER NOT NULL, 
	variant VARCHAR(9) NOT NULL, 
	at BIGINT NOT NULL, 
	cutoff INTEGER, 
	day INTEGER NOT NULL, 
	entity VARCHAR(255), 
	block BIGINT NOT NULL, 
	position INTEGER NOT NULL, 
	PRIMARY KEY (problem, id)
);
CREATE INDEX ix_predictions_block ON predictions (block);
CREATE INDEX predictions_by_entity ON predictions (problem, entity);
CREATE INDEX predictions_by_time ON predictions (problem, at);
CREATE TABLE api_keys (
	id VARCHAR(16) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	scopes TEXT NOT NULL, 
	salt BYTEA NOT NULL, 
	digest BYTEA NOT NULL, 
	created TIMESTAMP WITH TIME ZONE NOT NULL, 
	revoked TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (id)
);
CREATE UNIQUE INDEX one_active_key_per_name ON api_keys (name) WHERE revoked IS NULL;
