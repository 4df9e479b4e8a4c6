"""Django's settings: as few as it needs."""

SECRET_KEY = "only-for-this-example"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "shop.metrics.count_responses"]
