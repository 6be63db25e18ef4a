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
	sha256 VARCHAR(64), 
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
	moment TIMESTAMP WITH TIME ZONE, 
	recorded TIMESTAMP WITH TIME ZONE NOT NULL, 
	changed BIGINT DEFAULT '0' NOT NULL, 
	withdrawn TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (number), 
	UNIQUE (problem, id)
);
CREATE INDEX events_by_change ON events (problem, changed);
CREATE TABLE received_rows (
	number BIGSERIAL NOT NULL, 
	problem VARCHAR(64) NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	"table" VARCHAR(64) NOT NULL, 
	row TEXT NOT NULL, 
	recorded TIMESTAMP WITH TIME ZONE NOT NULL, 
	changed BIGINT DEFAULT '0' NOT NULL, 
	withdrawn TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (number), 
	UNIQUE (problem, id)
);
CREATE INDEX received_rows_by_change ON received_rows (problem, changed);
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
	journal TEXT, 
	at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (server, problem)
);
CREATE TABLE monitoring_runs (
	problem VARCHAR(64) NOT NULL, 
	until TIMESTAMP WITH TIME ZONE NOT NULL, 
	retrain BOOLEAN NOT NULL, 
	decision TEXT NOT NULL, 
	recorded TIMESTAMP WITH TIME ZONE NOT NULL, 
	withdrawn TEXT, 
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
CREATE INDEX labels_by_day ON labels (problem, day, number);
CREATE INDEX labels_by_entity ON labels (problem, entity);
CREATE INDEX labels_by_id ON labels (problem, id);
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
CREATE TABLE prediction_cohorts_live (
	problem VARCHAR(64) NOT NULL, 
	week DATE NOT NULL, 
	version INTEGER NOT NULL, 
	predictions INTEGER NOT NULL, 
	matured INTEGER NOT NULL, 
	score TEXT, 
	estimated TEXT, 
	labelled INTEGER NOT NULL, 
	label_number BIGINT NOT NULL, 
	label_at BIGINT, 
	PRIMARY KEY (problem, week, version)
);
CREATE TABLE prediction_columns (
	number BIGSERIAL NOT NULL, 
	problem VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	date INTEGER NOT NULL, 
	rows INTEGER NOT NULL, 
	first BIGINT NOT NULL, 
	last BIGINT NOT NULL, 
	first_day INTEGER NOT NULL, 
	last_day INTEGER NOT NULL, 
	head BYTEA NOT NULL, 
	outputs BYTEA NOT NULL, 
	features BYTEA NOT NULL, 
	PRIMARY KEY (number)
);
CREATE INDEX prediction_columns_by_date ON prediction_columns (problem, date, number);
CREATE TABLE prediction_ids (
	problem VARCHAR(64) NOT NULL, 
	period INTEGER NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	at BIGINT NOT NULL, 
	day INTEGER NOT NULL, 
	entity VARCHAR(255), 
	block BIGINT NOT NULL, 
	PRIMARY KEY (problem, period, id)
);
CREATE INDEX prediction_ids_by_entity ON prediction_ids (problem, period, entity);
CREATE TABLE prediction_labels (
	block BIGINT NOT NULL, 
	upto BIGINT NOT NULL, 
	complete BOOLEAN NOT NULL, 
	labels BYTEA NOT NULL, 
	PRIMARY KEY (block)
);
CREATE TABLE rejected_labels (
	number BIGSERIAL NOT NULL, 
	problem VARCHAR(64) NOT NULL, 
	at BIGINT NOT NULL, 
	label TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	PRIMARY KEY (number)
);
CREATE INDEX rejected_labels_by_problem ON rejected_labels (problem, number);
CREATE TABLE api_keys (
	id VARCHAR(16) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	scopes TEXT NOT NULL, 
	salt BYTEA NOT NULL, 
	digest BYTEA NOT NULL, 
	created TIMESTAMP WITH TIME ZONE NOT NULL, 
	revoked TIMESTAMP WITH TIME ZONE, 
	problems TEXT, 
	PRIMARY KEY (id)
);
CREATE UNIQUE INDEX one_active_key_per_name ON api_keys (name) WHERE revoked IS NULL;
CREATE TABLE suggestion_answers (
	id SERIAL NOT NULL, 
	problem VARCHAR(64) NOT NULL, 
	decided TIMESTAMP WITH TIME ZONE NOT NULL, 
	action VARCHAR(16) NOT NULL, 
	until TIMESTAMP WITH TIME ZONE, 
	by VARCHAR(255) NOT NULL, 
	at TIMESTAMP WITH TIME ZONE NOT NULL, 
	reason TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX ix_suggestion_answers_problem ON suggestion_answers (problem);
