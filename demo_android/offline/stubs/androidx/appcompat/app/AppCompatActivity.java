package androidx.appcompat.app;

import androidx.activity.ComponentActivity;
import androidx.appcompat.widget.Toolbar;

public class AppCompatActivity extends ComponentActivity {
    public void setSupportActionBar(Toolbar toolbar) {}
}
