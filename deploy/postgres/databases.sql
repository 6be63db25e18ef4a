-- Beside `evergreen`, which the image makes: one database for each server.
CREATE DATABASE mlflow;
CREATE DATABASE prefect;
